"""Section 3.1: the checks of widths, types and elements, and the small rules on ids, layers and addresses."""

from __future__ import annotations

from typing import Any

import pytest

from ray_kvfabric.cache.checks import check_int, check_layer_range
from tests.contract.conftest import NOT_INTS, WIDTHS, invalid, refused, wrong_ints


@pytest.fixture(params=["native", "drop_in"])
def check_width(request: pytest.FixtureRequest) -> Any:
    """check(width, name, value) of either face."""
    if request.param == "native":
        return lambda width, name, value: check_int(value, width, name)
    utils = request.getfixturevalue("llm_datadist").utils.utils
    return lambda width, name, value: getattr(utils, f"check_{width}")(name, value)


@pytest.mark.parametrize("width", WIDTHS)
class TestWidths:
    def test_bounds_are_inside(self, check_width: Any, width: str) -> None:
        for value in WIDTHS[width]:
            check_width(width, "field", value)

    def test_bool_is_an_int(self, check_width: Any, width: str) -> None:
        check_width(width, "field", True)

    def test_wrong_values_are_refused_by_name(self, check_width: Any, width: str) -> None:
        for value, kind in wrong_ints(width):
            with refused(kind, "field"):
                check_width(width, "field", value)


class TestIsInstance:
    @pytest.fixture
    def check(self, llm_datadist: Any) -> Any:
        return llm_datadist.utils.utils.check_isinstance

    def test_none_passes_unless_it_must_not(self, check: Any) -> None:
        check("field", None, int)
        with refused(TypeError, "field"):
            check("field", None, int, allow_none=False)

    def test_one_type_or_several(self, check: Any) -> None:
        check("field", 1, int)
        check("field", "1", (int, str))
        check("field", "1", [int, str])
        with refused(TypeError, "field only support int or str, got float"):
            check("field", 1.0, [int, str])

    def test_a_range_is_no_list(self, check: Any) -> None:
        with refused(TypeError, "field"):
            check("field", range(3), [list, tuple], int)

    @pytest.mark.parametrize("element", [value for value in NOT_INTS if not isinstance(value, list)])
    def test_elements(self, check: Any, element: object) -> None:
        check("field", (1, True), [list, tuple], int)
        with refused(TypeError, "element of field"):
            check("field", [1, element], [list, tuple], int)


class TestContainers:
    def test_list_of_int32(self, llm_datadist: Any) -> None:
        check = llm_datadist.utils.utils.check_list_int32
        check("field", [1, -1])
        check("field", ())
        for value, kind in [(None, TypeError), (3, TypeError), ([1.0], TypeError), ([2**31], ValueError)]:
            with refused(kind, "field"):
                check("field", value)

    def test_dict(self, llm_datadist: Any) -> None:
        check = llm_datadist.utils.utils.check_dict
        check("field", {1: 2}, int, int)
        check("field", {1: [2]}, int, list, int)
        check("field", None, int, int)
        for value in [[1], {"1": 2}, {1: "2"}, {None: 2}, {1: None}]:
            with refused(TypeError, "field"):
                check("field", value, int, int)
        for value in [{1: (2,)}, {1: ["2"]}]:
            with refused(TypeError, "field[1]"):
                check("field", value, int, list, int)


class TestStrictLayerRange:
    @pytest.mark.parametrize("layers", [range(1), range(3, 7)])
    def test_a_plain_range_passes(self, layers: range) -> None:
        assert check_layer_range(layers, "field") == layers

    @pytest.mark.parametrize("layers", [range(0), range(3, 3), range(5, 3), range(-1, 3), range(0, 4, 2)])
    def test_others_are_invalid(self, layers: range) -> None:
        with invalid("field"):
            check_layer_range(layers, "field")

    @pytest.mark.parametrize("layers", [None, [0, 1], (0, 1), 1, "0"])
    def test_what_is_no_range_is_a_type_error(self, layers: object) -> None:
        with refused(TypeError, "field"):
            check_layer_range(layers, "field")


class TestSmallRules:
    def test_an_id_of_all_ones_is_not_set(self, llm_datadist: Any) -> None:
        utils = llm_datadist.v2.llm_utils
        assert utils.is_invalid_id(2**64 - 1)
        assert not utils.is_valid_id(2**64 - 1)
        assert utils.is_valid_id(0)

    @pytest.mark.parametrize(
        ("layers", "tensors"), [(range(1, 3), [2, 3, 4, 5]), (range(1), [0, 1]), (range(3, 3), []), (None, [])]
    )
    def test_layers_to_tensors(self, llm_datadist: Any, layers: range | None, tensors: list[int]) -> None:
        assert llm_datadist.v2.llm_utils.layer_range_to_tensor_indices(layers, 2) == tensors


class TestListenAddress:
    """Section 9.2, point 7."""

    @pytest.fixture
    def parse(self, llm_datadist: Any) -> Any:
        return llm_datadist.v2.llm_utils.parse_listen_ip_info

    def test_ip_and_port(self, parse: Any) -> None:
        assert parse("1.2.3.4:26000") == (67305985, 26000)

    @pytest.mark.parametrize("text", ["", "1.2.3.4", "1.2.3.4:1:2", "::1:80", "1.1.1.1:1;2.2.2.2:2", "1.1.1.1:65536"])
    def test_another_form_is_invalid(self, parse: Any, text: str) -> None:
        with invalid("llm.listenIpInfo"):
            parse(text)

    @pytest.mark.parametrize("text", ["1.2.3.4:", "1.2.3.4:http", "1.2.3.4:1.5"])
    def test_a_port_that_is_no_number(self, parse: Any, text: str) -> None:
        with refused(ValueError, "llm.listenIpInfo"):
            parse(text)

    @pytest.mark.parametrize("text", [":80", "host:80", "1.2.3.256:80"])
    def test_an_ip_that_is_none(self, parse: Any, text: str) -> None:
        with refused(RuntimeError, "ip "):
            parse(text)


class TestClusterConfig:
    """Section 18: what the v1 path is given."""

    def test_the_cluster_info_is_made_where_it_is_absent(self, llm_datadist: Any) -> None:
        config = llm_datadist.v2.config
        options = {"llm.listenIpInfo": "1.2.3.4:26000"}
        config.EngineConfig.gen_cluster_info_if_not_exist(5, llm_datadist.LLMRole.PROMPT, options)
        made = config.EngineConfig.from_engine_options(True, options)
        assert made.is_prompt
        assert made.cluster_config == {"cluster_id": 5, "listen_ip_info": [{"ip": 67305985, "port": 26000}]}

    def test_a_decoder_does_not_listen(self, llm_datadist: Any) -> None:
        options = {"llm.listenIpInfo": "1.2.3.4:26000"}
        llm_datadist.v2.config.EngineConfig.gen_cluster_info_if_not_exist(5, llm_datadist.LLMRole.DECODER, options)
        assert options["llm.ClusterInfo"] == '{"cluster_id": 5}'

    def test_a_given_one_stays(self, llm_datadist: Any) -> None:
        options = {"llm.ClusterInfo": '{"cluster_id": 9}'}
        llm_datadist.v2.config.EngineConfig.gen_cluster_info_if_not_exist(5, llm_datadist.LLMRole.PROMPT, options)
        assert options == {"llm.ClusterInfo": '{"cluster_id": 9}'}

    def test_without_one_it_is_empty(self, llm_datadist: Any) -> None:
        assert llm_datadist.v2.config.EngineConfig.from_engine_options(False, {}).cluster_config == {}

    @pytest.mark.parametrize("text", ["{", "[1]"])
    def test_a_bad_one_is_invalid(self, llm_datadist: Any, text: str) -> None:
        with invalid("llm.ClusterInfo"):
            llm_datadist.v2.config.EngineConfig.from_engine_options(True, {"llm.ClusterInfo": text})
