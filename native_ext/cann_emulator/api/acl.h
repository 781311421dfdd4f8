// The ACL calls with real behaviour.
#pragma once
#include "acl_types.h"
#include "declare.h"

namespace kvf {

// process
KVF_API(aclError, aclInit, (const char *config_path))
KVF_API(aclError, aclFinalize, ())
KVF_API(const char *, aclGetRecentErrMsg, ())
KVF_API(const char *, aclrtGetSocName, ())
KVF_API(void, aclAppLog, (LogLevel, const char *function, const char *file, uint32_t line, const char *format, ...))
KVF_API(aclError, aclrtDeviceGetBareTgid, (int32_t *pid))

// devices
KVF_API(aclError, aclrtGetDeviceCount, (uint32_t *count))
KVF_API(aclError, aclrtSetDevice, (int32_t device))
KVF_API(aclError, aclrtGetDevice, (int32_t *device))
KVF_API(aclError, aclrtResetDevice, (int32_t device))
KVF_API(aclError, aclrtGetCurrentContext, (aclrtContext *context))
KVF_API(aclError, aclrtSetCurrentContext, (aclrtContext context))
KVF_API(aclError, aclrtGetPrimaryCtxState, (int32_t device, uint32_t *flags, int32_t *active))
KVF_API(aclError, aclrtGetLogicDevIdByUserDevId, (const int32_t user, int32_t *const logic))
KVF_API(aclError, aclrtGetUserDevIdByLogicDevId, (const int32_t logic, int32_t *const user))
KVF_API(aclError, aclrtGetPhyDevIdByLogicDevId, (const int32_t logic, int32_t *const physical))
KVF_API(aclError, aclrtGetLogicDevIdByPhyDevId, (const int32_t physical, int32_t *const logic))
KVF_API(aclError, aclrtDeviceCanAccessPeer, (int32_t *can_access, int32_t device, int32_t peer))
KVF_API(aclError, aclrtDeviceEnablePeerAccess, (int32_t peer, uint32_t flags))
KVF_API(aclError, aclrtDeviceDisablePeerAccess, (int32_t peer))
KVF_API(aclError, aclrtGetDeviceInfo, (uint32_t device, DeviceAttribute attribute, int64_t *value))
KVF_API(aclError, aclGetDeviceCapability, (uint32_t device, DeviceInfo info, int64_t *value))
KVF_API(aclError, aclrtSynchronizeDevice, ())
KVF_API(aclError, aclrtSynchronizeDeviceWithTimeout, (int32_t milliseconds))

// memory
KVF_API(aclError, aclrtMalloc, (void **address, size_t size, MallocPolicy policy))
KVF_API(aclError, aclrtMallocAlign32, (void **address, size_t size, MallocPolicy policy))
KVF_API(aclError, aclrtFree, (void *address))
KVF_API(aclError, aclrtMallocHost, (void **address, size_t size))
KVF_API(aclError, aclrtFreeHost, (void *address))
KVF_API(aclError, aclrtGetMemInfo, (MemoryAttribute attribute, size_t *free, size_t *total))
KVF_API(aclError, aclrtPointerGetAttributes, (const void *address, PointerAttributes *attributes))
KVF_API(aclError, aclrtMemGetAddressRange, (void *address, void **base, size_t *size))
KVF_API(aclError, aclrtMemcpy, (void *to, size_t room, const void *from, size_t count, MemcpyKind kind))
KVF_API(aclError, aclrtMemcpyAsync,
        (void *to, size_t room, const void *from, size_t count, MemcpyKind kind, aclrtStream stream))
KVF_API(aclError, aclrtMemset, (void *address, size_t room, int32_t value, size_t count))
KVF_API(aclError, aclrtMemsetAsync, (void *address, size_t room, int32_t value, size_t count, aclrtStream stream))

// streams
KVF_API(aclError, aclrtCreateStream, (aclrtStream *stream))
KVF_API(aclError, aclrtCreateStreamWithConfig, (aclrtStream *stream, uint32_t priority, uint32_t flags))
KVF_API(aclError, aclrtDestroyStream, (aclrtStream stream))
KVF_API(aclError, aclrtDestroyStreamForce, (aclrtStream stream))
KVF_API(aclError, aclrtSynchronizeStream, (aclrtStream stream))
KVF_API(aclError, aclrtSynchronizeStreamWithTimeout, (aclrtStream stream, int32_t milliseconds))
KVF_API(aclError, aclrtStreamQuery, (aclrtStream stream, StreamStatus *status))
KVF_API(aclError, aclrtStreamAbort, (aclrtStream stream))
KVF_API(aclError, aclrtStreamGetId, (aclrtStream stream, int32_t *id))
KVF_API(aclError, aclrtStreamWaitEvent, (aclrtStream stream, aclrtEvent event))

// events
KVF_API(aclError, aclrtCreateEvent, (aclrtEvent *event))
KVF_API(aclError, aclrtCreateEventWithFlag, (aclrtEvent *event, uint32_t flags))
KVF_API(aclError, aclrtCreateEventExWithFlag, (aclrtEvent *event, uint32_t flags))
KVF_API(aclError, aclrtDestroyEvent, (aclrtEvent event))
KVF_API(aclError, aclrtRecordEvent, (aclrtEvent event, aclrtStream stream))
KVF_API(aclError, aclrtResetEvent, (aclrtEvent event, aclrtStream stream))
KVF_API(aclError, aclrtQueryEventStatus, (aclrtEvent event, RecordStatus *status))
KVF_API(aclError, aclrtQueryEventWaitStatus, (aclrtEvent event, WaitStatus *status))
KVF_API(aclError, aclrtSynchronizeEvent, (aclrtEvent event))
KVF_API(aclError, aclrtSynchronizeEventWithTimeout, (aclrtEvent event, int32_t milliseconds))
KVF_API(aclError, aclrtEventElapsedTime, (float *milliseconds, aclrtEvent start, aclrtEvent end))

// memory shared between processes
KVF_API(aclError, aclrtIpcMemGetExportKey, (void *address, size_t size, char *key, size_t length, uint64_t flags))
KVF_API(aclError, aclrtIpcMemImportByKey, (void **address, const char *key, uint64_t flags))
KVF_API(aclError, aclrtIpcMemSetImportPid, (const char *key, int32_t *pids, size_t count))
KVF_API(aclError, aclrtIpcMemClose, (const char *key))

}  // namespace kvf
