// Calls of torch_npu's start and end whose failure it takes for a broken device. They only remember or confirm.
#pragma once
#include "acl_types.h"
#include "declare.h"

namespace kvf {

KVF_API(aclError, aclrtSetDeviceSatMode, (OverflowMode mode))    // at the first use of a device
KVF_API(aclError, aclrtSetOpExecuteTimeOut, (uint32_t seconds))  // the same
KVF_API(aclError, aclrtSetStreamOverflowSwitch, (aclrtStream stream, uint32_t flag))  // on chips before 910B
KVF_API(aclError, aclrtSetOpWaitTimeout, (uint32_t seconds))     // of init_process_group("hccl")
KVF_API(aclError, aclrtGetSysParamOpt, (SystemOption option, int64_t *value))
KVF_API(aclError, aclrtSetSysParamOpt, (SystemOption option, int64_t value))
KVF_API(aclError, aclrtCtxSetSysParamOpt,
        (SystemOption option, int64_t value))  // its absence is a warning of torch_npu
// Follows an operator that was refused: torch_npu ends the process where it fails. There never was a buffer.
KVF_API(aclError, aclDestroyDataBuffer, (const void *buffer))

}  // namespace kvf
