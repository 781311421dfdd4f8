// What the emulation refuses. Opaque structures of CANN are void here.
#pragma once
#include "acl_types.h"
#include "declare.h"

namespace kvf {

enum DataType : int { kUndefinedType = -1 };
enum Format : int { kUndefinedFormat = -1 };
enum MemoryPlacement : unsigned { kOnDevice = 0, kOnHost = 1, kOnHostCompileIndependent = 2 };
enum EngineType : unsigned { kEngineSystem = 0, kEngineAiCore = 1, kEngineVector = 2 };
enum CompileType : unsigned { kCompileSystem = 0, kCompileUnregistered = 1 };
enum RuntimeError : unsigned { kInvalidValue = 1 };
enum HandleType : unsigned { kHandleNone = 0, kHandlePosix = 2 };

#define KVF_REFUSED(name, params) KVF_API(aclError, name, params)
#include "refused.inc"
#undef KVF_REFUSED

// Refused as well, but they answer with something other than an error number.
KVF_API(void *, aclCreateDataBuffer, (void *, size_t))
KVF_API(void *, aclCreateTensorDesc, (DataType, int, const int64_t *, Format))
KVF_API(void, aclDestroyTensorDesc, (const void *))
KVF_API(Format, aclGetTensorDescFormat, (const void *))
KVF_API(size_t, aclGetTensorDescNumDims, (const void *))
KVF_API(DataType, aclGetTensorDescType, (const void *))
KVF_API(void, aclSetTensorDescName, (void *, const char *))
KVF_API(void *, aclopCreateAttr, ())
KVF_API(void, aclopDestroyAttr, (const void *))

// Runtime and profiler calls below ACL.
KVF_API(RuntimeError, rtDevBinaryRegister, (const void *, void **))
KVF_API(RuntimeError, rtFunctionRegister, (void *, const void *, const char *, const void *, uint32_t))
KVF_API(RuntimeError, rtGetC2cCtrlAddr, (uint64_t *, uint32_t *))
KVF_API(RuntimeError, rtKernelLaunch, (const void *, uint32_t, void *, uint32_t, void *, void *))
KVF_API(int32_t, MsprofReportApi, (uint32_t, const void *))
KVF_API(int32_t, MsprofReportCompactInfo, (uint32_t, void *, uint32_t))
KVF_API(int32_t, MsprofReportAdditionalInfo, (uint32_t, void *, uint32_t))
KVF_API(uint64_t, MsprofGetHashId, (const char *, size_t))
KVF_API(int32_t, MsprofRegisterCallback, (uint32_t, int32_t (*)(uint32_t, void *, uint32_t)))
KVF_API(uint64_t, MsprofSysCycleTime, ())

}  // namespace kvf
