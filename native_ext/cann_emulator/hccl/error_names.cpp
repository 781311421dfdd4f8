#include "../api/hccl.h"

namespace kvf {

const char *HcclGetErrorString(HcclResult code) {
  switch (code) {
    case kHcclOk: return "no error";
    case kHcclParameter: return "parameter error";
    case kHcclNullPointer: return "empty pointer";
    case kHcclMemory: return "memory error";
    case kHcclInternal: return "internal error";
    case kHcclNotSupported: return "not supported";
    case kHcclNotFound: return "resource not found";
    case kHcclUnavailable: return "resource unavailable";
    case kHcclSystemCall: return "error of a system call";
    case kHcclTimeout: return "timeout";
    case kHcclConnect: return "connection failed";
    case kHcclRuntime: return "error of a runtime call";
    case kHcclAgain: return "in use, try again";
    case kHcclRemote: return "error at the remote end";
    case kHcclSuspending: return "communicator is being ended";
    case kHcclOutOfMemory: return "out of memory";
  }
  return "unknown error";
}

}  // namespace kvf
