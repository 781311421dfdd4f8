// Compiles only where every prototype, layout and number under api/ is what the headers of a torch_npu wheel say. They
// stay in the wheel: their licence does not let us carry them.
#include <acl/acl.h>
#include <acl/acl_op_compiler.h>
#include <profiling/prof_api.h>
#include <third_party/hccl/inc/hccl/hccl.h>
#include <torch_npu/csrc/inductor/mlir/hacl_rt.h>

#include <cstddef>
#include <type_traits>

namespace abi {

// What a type is to machine code: an enumeration an integer, a pointer to a structure a pointer. Layouts come below.
template <class T, class = void>
struct Plain {
  using type = T;
};
template <class T>
struct Plain<T, std::enable_if_t<!std::is_const_v<T> && std::is_enum_v<T>>> {
  using type = std::underlying_type_t<T>;
};
template <class T>
struct Plain<T, std::enable_if_t<!std::is_const_v<T> && (std::is_class_v<T> || std::is_union_v<T>)>> {
  using type = void;
};
template <class T>
struct Plain<const T> {
  using type = const typename Plain<T>::type;
};
template <class T>
struct Plain<T *, std::enable_if_t<!std::is_function_v<T>>> {
  using type = typename Plain<T>::type *;
};
template <class Result, class... Arguments>
struct Plain<Result (*)(Arguments...)> {
  using type = typename Plain<Result>::type (*)(typename Plain<Arguments>::type...);
};
template <class Result, class... Arguments>
struct Plain<Result (*)(Arguments..., ...)> {
  using type = typename Plain<Result>::type (*)(typename Plain<Arguments>::type..., ...);
};

template <class Real, class Own>
constexpr bool same = std::is_same_v<typename Plain<Real>::type, typename Plain<Own>::type>;

}  // namespace abi

// From here on each declaration of ours is a comparison.
#define KVF_API(result, name, params) \
  static_assert(abi::same<decltype(&::name), result(*) params>, #name " has another prototype");
#include "api/acl.h"
#include "api/hccl.h"
#include "api/op_compiler.h"
#include "api/startup.h"
#include "api/unimplemented.h"

#define SAME_SIZE(real, own) \
  static_assert(sizeof(real) == sizeof(kvf::own) && alignof(real) == alignof(kvf::own), #real)
#define SAME_FIELD(real, real_field, own, own_field)                           \
  static_assert(offsetof(real, real_field) == offsetof(kvf::own, own_field) && \
                    sizeof(real::real_field) == sizeof(kvf::own::own_field),   \
                #real "." #real_field)
#define SAME_NUMBER(real, own) static_assert(static_cast<long>(real) == static_cast<long>(kvf::own), #real)

SAME_SIZE(HcclRootInfo, HcclRootInfo);
SAME_SIZE(HcclSendRecvItem, HcclItem);
SAME_FIELD(HcclSendRecvItem, sendRecvType, HcclItem, direction);
SAME_FIELD(HcclSendRecvItem, buf, HcclItem, buffer);
SAME_FIELD(HcclSendRecvItem, count, HcclItem, count);
SAME_FIELD(HcclSendRecvItem, dataType, HcclItem, type);
SAME_FIELD(HcclSendRecvItem, remoteRank, HcclItem, peer);

SAME_SIZE(HcclCommConfig, HcclCommConfig);
SAME_FIELD(HcclCommConfig, reserved, HcclCommConfig, head);
SAME_FIELD(HcclCommConfig, hcclBufferSize, HcclCommConfig, buffer_megabytes);
SAME_FIELD(HcclCommConfig, hcclDeterministic, HcclCommConfig, deterministic);
SAME_FIELD(HcclCommConfig, hcclCommName, HcclCommConfig, name);
SAME_FIELD(HcclCommConfig, hcclUdi, HcclCommConfig, udi);
SAME_FIELD(HcclCommConfig, hcclOpExpansionMode, HcclCommConfig, op_expansion_mode);
SAME_FIELD(HcclCommConfig, hcclRdmaTrafficClass, HcclCommConfig, traffic_class);
SAME_FIELD(HcclCommConfig, hcclRdmaServiceLevel, HcclCommConfig, service_level);
SAME_FIELD(HcclCommConfig, hcclWorldRankID, HcclCommConfig, world_rank);
SAME_FIELD(HcclCommConfig, hcclJobID, HcclCommConfig, job);
SAME_FIELD(HcclCommConfig, aclGraphZeroCopyEnable, HcclCommConfig, graph_zero_copy);
SAME_FIELD(HcclCommConfig, hcclExecTimeOut, HcclCommConfig, exec_timeout_seconds);
SAME_FIELD(HcclCommConfig, hcclAlgo, HcclCommConfig, algorithm);
SAME_FIELD(HcclCommConfig, hcclRetryEnable, HcclCommConfig, retry_enable);
SAME_FIELD(HcclCommConfig, hcclRetryParams, HcclCommConfig, retry_params);
SAME_FIELD(HcclCommConfig, hcclBufferName, HcclCommConfig, buffer_name);
SAME_FIELD(HcclCommConfig, hcclQos, HcclCommConfig, qos);
SAME_FIELD(HcclCommConfig, hcclSymWinMaxMemSizePerRank, HcclCommConfig, symmetric_window_gigabytes);

SAME_SIZE(aclrtMemLocation, Location);
SAME_FIELD(aclrtMemLocation, id, Location, id);
SAME_FIELD(aclrtMemLocation, type, Location, type);
SAME_SIZE(aclrtPtrAttributes, PointerAttributes);
SAME_FIELD(aclrtPtrAttributes, location, PointerAttributes, location);
SAME_FIELD(aclrtPtrAttributes, pageSize, PointerAttributes, page_size);
SAME_SIZE(aclrtServerPid, ServerPids);
SAME_FIELD(aclrtServerPid, sdid, ServerPids, server);
SAME_FIELD(aclrtServerPid, pid, ServerPids, pids);
SAME_FIELD(aclrtServerPid, num, ServerPids, count);

SAME_NUMBER(HCCL_COMM_CONFIG_MAGIC_WORD, kHcclConfigMagic);
SAME_NUMBER(HCCL_COMM_CONFIG_VERSION, kHcclConfigVersion);
SAME_NUMBER(HCCL_COMM_BUFFSIZE_CONFIG_NOT_SET, kHcclNotSet);
SAME_NUMBER(HCCL_COMM_DEFAULT_BUFFSIZE, kHcclDefaultBufferMegabytes);
SAME_NUMBER(HCCL_COMM_CONFIG_RESERVED, kHcclConfigCapability);
SAME_NUMBER(HCCL_SUCCESS, kHcclOk);
SAME_NUMBER(HCCL_E_PARA, kHcclParameter);
SAME_NUMBER(HCCL_E_PTR, kHcclNullPointer);
SAME_NUMBER(HCCL_E_MEMORY, kHcclMemory);
SAME_NUMBER(HCCL_E_INTERNAL, kHcclInternal);
SAME_NUMBER(HCCL_E_NOT_SUPPORT, kHcclNotSupported);
SAME_NUMBER(HCCL_E_NOT_FOUND, kHcclNotFound);
SAME_NUMBER(HCCL_E_UNAVAIL, kHcclUnavailable);
SAME_NUMBER(HCCL_E_SYSCALL, kHcclSystemCall);
SAME_NUMBER(HCCL_E_TIMEOUT, kHcclTimeout);
SAME_NUMBER(HCCL_E_TCP_CONNECT, kHcclConnect);
SAME_NUMBER(HCCL_E_RUNTIME, kHcclRuntime);
SAME_NUMBER(HCCL_E_AGAIN, kHcclAgain);
SAME_NUMBER(HCCL_E_REMOTE, kHcclRemote);
SAME_NUMBER(HCCL_E_SUSPENDING, kHcclSuspending);
SAME_NUMBER(HCCL_E_OOM, kHcclOutOfMemory);
SAME_NUMBER(HCCL_SEND, kSend);
SAME_NUMBER(HCCL_RECV, kReceive);
SAME_NUMBER(HCCL_DATA_TYPE_INT8, kInt8);
SAME_NUMBER(HCCL_DATA_TYPE_INT16, kInt16);
SAME_NUMBER(HCCL_DATA_TYPE_INT32, kInt32);
SAME_NUMBER(HCCL_DATA_TYPE_FP16, kFloat16);
SAME_NUMBER(HCCL_DATA_TYPE_FP32, kFloat32);
SAME_NUMBER(HCCL_DATA_TYPE_INT64, kInt64);
SAME_NUMBER(HCCL_DATA_TYPE_UINT64, kUint64);
SAME_NUMBER(HCCL_DATA_TYPE_UINT8, kUint8);
SAME_NUMBER(HCCL_DATA_TYPE_UINT16, kUint16);
SAME_NUMBER(HCCL_DATA_TYPE_UINT32, kUint32);
SAME_NUMBER(HCCL_DATA_TYPE_FP64, kFloat64);
SAME_NUMBER(HCCL_DATA_TYPE_BFP16, kBfloat16);
SAME_NUMBER(HCCL_DATA_TYPE_HIF8, kHifloat8);
SAME_NUMBER(HCCL_DATA_TYPE_FP8E4M3, kFloat8E4m3);
SAME_NUMBER(HCCL_DATA_TYPE_FP8E5M2, kFloat8E5m2);
SAME_NUMBER(HCCL_DATA_TYPE_FP8E8M0, kFloat8E8m0);

SAME_NUMBER(ACL_SUCCESS, code::ok);
SAME_NUMBER(ACL_ERROR_REPEAT_INITIALIZE, code::repeated_init);
SAME_NUMBER(ACL_ERROR_API_NOT_SUPPORT, code::api_not_supported);
SAME_NUMBER(ACL_ERROR_RT_PARAM_INVALID, code::invalid_param);
SAME_NUMBER(ACL_ERROR_RT_INVALID_DEVICEID, code::invalid_device);
SAME_NUMBER(ACL_ERROR_RT_CONTEXT_NULL, code::no_context);
SAME_NUMBER(ACL_ERROR_RT_STREAM_CONTEXT, code::stream_of_other_device);
SAME_NUMBER(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, code::event_timestamp);
SAME_NUMBER(ACL_ERROR_RT_ADDR_UNALIGNED, code::unaligned);
SAME_NUMBER(ACL_ERROR_RT_INVALID_MEMORY_TYPE, code::wrong_memory_side);
SAME_NUMBER(ACL_ERROR_RT_INVALID_HANDLE, code::invalid_handle);
SAME_NUMBER(ACL_ERROR_RT_STREAM_ABORT, code::stream_aborted);
SAME_NUMBER(ACL_ERROR_RT_FEATURE_NOT_SUPPORT, code::not_supported);
SAME_NUMBER(ACL_ERROR_RT_MEMORY_ALLOCATION, code::out_of_memory);
SAME_NUMBER(ACL_ERROR_RT_MEMORY_FREE, code::memory_free);
SAME_NUMBER(ACL_ERROR_RT_NO_PERMISSION, code::no_permission);
SAME_NUMBER(ACL_ERROR_RT_INTERNAL_ERROR, code::internal);
SAME_NUMBER(ACL_ERROR_RT_IPC_ERROR, code::ipc);
SAME_NUMBER(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, code::stream_sync_timeout);
SAME_NUMBER(ACL_ERROR_RT_EVENT_SYNC_TIMEOUT, code::event_sync_timeout);
SAME_NUMBER(ACL_ERROR_RT_FFTS_PLUS_TIMEOUT, code::hccl_task_timeout);
SAME_NUMBER(ACL_ERROR_RT_DEVICE_MEM_ERROR, code::device_memory);
SAME_NUMBER(ACL_ERROR_RT_SUSPECT_REMOTE_ERROR, code::remote_suspect);

SAME_NUMBER(ACL_MEMCPY_HOST_TO_HOST, kHostToHost);
SAME_NUMBER(ACL_MEMCPY_HOST_TO_DEVICE, kHostToDevice);
SAME_NUMBER(ACL_MEMCPY_DEVICE_TO_HOST, kDeviceToHost);
SAME_NUMBER(ACL_MEMCPY_DEVICE_TO_DEVICE, kDeviceToDevice);
SAME_NUMBER(ACL_MEMCPY_DEFAULT, kByAddress);
SAME_NUMBER(ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE, kHostToBufferToDevice);
SAME_NUMBER(ACL_MEMCPY_INNER_DEVICE_TO_DEVICE, kInsideDevice);
SAME_NUMBER(ACL_MEMCPY_INTER_DEVICE_TO_DEVICE, kBetweenDevices);
SAME_NUMBER(ACL_MEM_MALLOC_HUGE_FIRST, kHugeFirst);
SAME_NUMBER(ACL_MEM_MALLOC_HUGE_ONLY, kHugeOnly);
SAME_NUMBER(ACL_MEM_MALLOC_NORMAL_ONLY, kNormalOnly);
SAME_NUMBER(ACL_MEM_MALLOC_HUGE_FIRST_P2P, kHugeFirstP2P);
SAME_NUMBER(ACL_MEM_MALLOC_HUGE_ONLY_P2P, kHugeOnlyP2P);
SAME_NUMBER(ACL_MEM_MALLOC_NORMAL_ONLY_P2P, kNormalOnlyP2P);
SAME_NUMBER(ACL_MEM_MALLOC_HUGE1G_ONLY, kHuge1G);
SAME_NUMBER(ACL_MEM_MALLOC_HUGE1G_ONLY_P2P, kHuge1GP2P);
SAME_NUMBER(ACL_HBM_MEM, kHbm);
SAME_NUMBER(ACL_HBM_MEM_HUGE, kHbmHuge);
SAME_NUMBER(ACL_HBM_MEM_NORMAL, kHbmNormal);
SAME_NUMBER(ACL_STREAM_STATUS_COMPLETE, kStreamComplete);
SAME_NUMBER(ACL_STREAM_STATUS_NOT_READY, kStreamNotReady);
SAME_NUMBER(ACL_EVENT_RECORDED_STATUS_NOT_READY, kRecordNotReady);
SAME_NUMBER(ACL_EVENT_RECORDED_STATUS_COMPLETE, kRecordComplete);
SAME_NUMBER(ACL_EVENT_WAIT_STATUS_COMPLETE, kWaitComplete);
SAME_NUMBER(ACL_EVENT_WAIT_STATUS_NOT_READY, kWaitNotReady);
SAME_NUMBER(ACL_DEV_ATTR_AICORE_CORE_NUM, kAiCores);
SAME_NUMBER(ACL_DEV_ATTR_CUBE_CORE_NUM, kCubeCores);
SAME_NUMBER(ACL_DEV_ATTR_VECTOR_CORE_NUM, kVectorCores);
SAME_NUMBER(ACL_DEV_ATTR_TOTAL_GLOBAL_MEM_SIZE, kTotalMemory);
SAME_NUMBER(ACL_DEV_ATTR_PHY_CHIP_ID, kPhysicalChip);
SAME_NUMBER(ACL_DEV_ATTR_SUPER_POD_DEVICE_ID, kSuperPodDevice);
SAME_NUMBER(ACL_DEV_ATTR_SUPER_POD_SERVER_ID, kSuperPodServer);
SAME_NUMBER(ACL_DEV_ATTR_SUPER_POD_ID, kSuperPod);
SAME_NUMBER(ACL_DEVICE_INFO_AI_CORE_NUM, kInfoAiCores);
SAME_NUMBER(ACL_DEVICE_INFO_VECTOR_CORE_NUM, kInfoVectorCores);
SAME_NUMBER(ACL_DEVICE_INFO_L2_SIZE, kInfoL2Size);
SAME_NUMBER(ACL_RT_OVERFLOW_MODE_SATURATION, kSaturation);
SAME_NUMBER(ACL_RT_OVERFLOW_MODE_INFNAN, kInfNan);
SAME_NUMBER(ACL_MEM_LOCATION_TYPE_HOST, kLocationHost);
SAME_NUMBER(ACL_MEM_LOCATION_TYPE_DEVICE, kLocationDevice);
SAME_NUMBER(ACL_MEM_LOCATION_TYPE_UNREGISTERED, kLocationUnregistered);
SAME_NUMBER(ACL_EVENT_TIME_LINE, kEventTimeLine);
SAME_NUMBER(ACL_RT_IPC_MEM_EXPORT_FLAG_DISABLE_PID_VALIDATION, kIpcNoPidCheck);
SAME_NUMBER(ACL_RT_IPC_MEM_IMPORT_FLAG_ENABLE_PEER_ACCESS, kIpcPeerAccess);
SAME_NUMBER(ACL_OPT_STRONG_CONSISTENCY, kStrongConsistency);
