// Everything here is an error, with a line in the log; see api/unimplemented.h.
#include "../api/unimplemented.h"

#include "call.h"

namespace kvf {

#define KVF_REFUSED(name, params) \
  aclError name params { return unimplemented(#name); }
#include "../api/refused.inc"

#define KVF_REFUSE_WITH(result, name, params, answer) \
  result name params {                                \
    unimplemented(#name);                             \
    return answer;                                    \
  }
KVF_REFUSE_WITH(void *, aclCreateDataBuffer, (void *, size_t), nullptr)
KVF_REFUSE_WITH(void *, aclCreateTensorDesc, (DataType, int, const int64_t *, Format), nullptr)
KVF_REFUSE_WITH(void, aclDestroyTensorDesc, (const void *), )
KVF_REFUSE_WITH(Format, aclGetTensorDescFormat, (const void *), kUndefinedFormat)
KVF_REFUSE_WITH(size_t, aclGetTensorDescNumDims, (const void *), 0)
KVF_REFUSE_WITH(DataType, aclGetTensorDescType, (const void *), kUndefinedType)
KVF_REFUSE_WITH(void, aclSetTensorDescName, (void *, const char *), )
KVF_REFUSE_WITH(void *, aclopCreateAttr, (), nullptr)
KVF_REFUSE_WITH(void, aclopDestroyAttr, (const void *), )

KVF_REFUSE_WITH(RuntimeError, rtDevBinaryRegister, (const void *, void **), kInvalidValue)
KVF_REFUSE_WITH(RuntimeError, rtFunctionRegister, (void *, const void *, const char *, const void *, uint32_t),
                kInvalidValue)
KVF_REFUSE_WITH(RuntimeError, rtGetC2cCtrlAddr, (uint64_t *, uint32_t *), kInvalidValue)
KVF_REFUSE_WITH(RuntimeError, rtKernelLaunch, (const void *, uint32_t, void *, uint32_t, void *, void *), kInvalidValue)
KVF_REFUSE_WITH(int32_t, MsprofReportApi, (uint32_t, const void *), -1)
KVF_REFUSE_WITH(int32_t, MsprofReportCompactInfo, (uint32_t, void *, uint32_t), -1)
KVF_REFUSE_WITH(int32_t, MsprofReportAdditionalInfo, (uint32_t, void *, uint32_t), -1)
KVF_REFUSE_WITH(uint64_t, MsprofGetHashId, (const char *, size_t), 0)
KVF_REFUSE_WITH(int32_t, MsprofRegisterCallback, (uint32_t, int32_t (*)(uint32_t, void *, uint32_t)), -1)
KVF_REFUSE_WITH(uint64_t, MsprofSysCycleTime, (), 0)

}  // namespace kvf
