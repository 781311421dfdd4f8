"""Sections 3.1, 3.3 and 3.4: LLMException, Status, and native codes."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any

import pytest


class TestException:
    def test_it_is_a_runtime_error(self, api: Any) -> None:
        assert issubclass(api.LLMException, RuntimeError)

    def test_the_default_code_is_success(self, api: Any) -> None:
        assert api.LLMException("text").status_code is api.LLMStatusCode.LLM_SUCCESS

    def test_it_carries_arguments_and_a_code(self, api: Any) -> None:
        error = api.LLMException("text", 7, status_code=api.LLMStatusCode.LLM_TIMEOUT)
        assert error.args == ("text", 7)
        assert error.status_code is api.LLMStatusCode.LLM_TIMEOUT

    def test_the_code_is_a_keyword_only(self, api: Any) -> None:
        error = api.LLMException("text", api.LLMStatusCode.LLM_TIMEOUT)
        assert error.status_code is api.LLMStatusCode.LLM_SUCCESS

    def test_the_code_is_read_only(self, api: Any) -> None:
        with pytest.raises(AttributeError):
            api.LLMException("text").status_code = api.LLMStatusCode.LLM_FAILED

    @pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
    def test_it_pickles_with_its_code(self, api: Any, duplicate: Any) -> None:
        error = duplicate(api.LLMException("text", 7, status_code=api.LLMStatusCode.LLM_TIMEOUT))
        assert type(error) is api.LLMException
        assert error.args == ("text", 7)
        assert error.status_code is api.LLMStatusCode.LLM_TIMEOUT

    def test_a_refusal_pickles_with_its_code(self, api: Any) -> None:
        with pytest.raises(api.LLMException) as caught:
            api.BlocksCacheKey()
        again = pickle.loads(pickle.dumps(caught.value))
        assert again.args == caught.value.args
        assert again.status_code is api.LLMStatusCode.LLM_PARAM_INVALID


class TestStatus:
    def test_success_is_ok(self, llm_datadist: Any) -> None:
        assert llm_datadist.Status(llm_datadist.LLMStatusCode.LLM_SUCCESS).is_ok() is True

    def test_everything_else_is_not(self, llm_datadist: Any) -> None:
        others = [code for code in llm_datadist.LLMStatusCode if code]
        assert [code for code in others if llm_datadist.Status(code).is_ok()] == []

    def test_the_code_is_read_only(self, llm_datadist: Any) -> None:
        status = llm_datadist.Status(llm_datadist.LLMStatusCode.LLM_TIMEOUT)
        assert status.status_code is llm_datadist.LLMStatusCode.LLM_TIMEOUT
        with pytest.raises(AttributeError):
            status.status_code = llm_datadist.LLMStatusCode.LLM_SUCCESS

    def test_it_pickles(self, llm_datadist: Any) -> None:
        status = pickle.loads(pickle.dumps(llm_datadist.Status(llm_datadist.LLMStatusCode.LLM_TIMEOUT)))
        assert status.status_code is llm_datadist.LLMStatusCode.LLM_TIMEOUT


class TestNativeCodes:
    def test_a_known_code_is_its_member(self, llm_datadist: Any) -> None:
        for code in llm_datadist.LLMStatusCode:
            assert llm_datadist.status.code_2_status(int(code)) is code

    @pytest.mark.parametrize("code", [1, 0x5010B014, 507899, -2])
    def test_an_unknown_code_is_failed(self, llm_datadist: Any, code: int) -> None:
        assert llm_datadist.status.code_2_status(code) is llm_datadist.LLMStatusCode.LLM_FAILED

    def test_the_classes_are_at_home_in_status(self, llm_datadist: ModuleType) -> None:
        from llm_datadist.status import LLMException, LLMStatusCode

        assert LLMException is llm_datadist.LLMException
        assert LLMStatusCode is llm_datadist.LLMStatusCode
