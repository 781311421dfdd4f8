// The types and numbers of the ACL calls that the emulation performs; abi_check.cpp compares them with the real ones.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvf {

using aclError = int;
using aclrtStream = void *;
using aclrtEvent = void *;
using aclrtContext = void *;

// Error numbers, by what they mean here.
namespace code {
constexpr int ok = 0;
constexpr int repeated_init = 100002;
constexpr int invalid_param = 107000;
constexpr int invalid_device = 107001;
constexpr int no_context = 107002;
constexpr int stream_of_other_device = 107003;
constexpr int event_timestamp = 107006;
constexpr int unaligned = 107008;
constexpr int wrong_memory_side = 107016;
constexpr int invalid_handle = 107017;
constexpr int stream_aborted = 107023;
constexpr int not_supported = 207000;
constexpr int out_of_memory = 207001;
constexpr int memory_free = 207002;
constexpr int no_permission = 207006;
constexpr int internal = 507000;
constexpr int ipc = 507022;
constexpr int stream_sync_timeout = 507046;
constexpr int event_sync_timeout = 507047;
constexpr int hccl_task_timeout = 507048;
constexpr int device_memory = 507053;
constexpr int remote_suspect = 507057;
constexpr int api_not_supported = 200001;
}  // namespace code

enum MemcpyKind : unsigned {
  kHostToHost = 0,
  kHostToDevice = 1,
  kDeviceToHost = 2,
  kDeviceToDevice = 3,
  kByAddress = 4,
  kHostToBufferToDevice = 5,
  kInsideDevice = 6,
  kBetweenDevices = 7,
};

enum MallocPolicy : unsigned {
  kHugeFirst = 0,
  kHugeOnly = 1,
  kNormalOnly = 2,
  kHugeFirstP2P = 3,
  kHugeOnlyP2P = 4,
  kNormalOnlyP2P = 5,
  kHuge1G = 6,
  kHuge1GP2P = 7,
};

enum MemoryAttribute : unsigned { kDdr = 0, kHbm = 1, kHbmHuge = 4, kHbmNormal = 5 };
enum StreamStatus : unsigned { kStreamComplete = 0, kStreamNotReady = 1, kStreamReserved = 0xFFFF };
enum RecordStatus : unsigned { kRecordNotReady = 0, kRecordComplete = 1 };
enum WaitStatus : unsigned { kWaitComplete = 0, kWaitNotReady = 1, kWaitReserved = 0xFFFF };
enum DeviceAttribute : unsigned {
  kAiCores = 101,
  kCubeCores = 102,
  kVectorCores = 201,
  kTotalMemory = 301,
  kPhysicalChip = 402,
  kSuperPodDevice = 403,
  kSuperPodServer = 404,
  kSuperPod = 405,
};
enum DeviceInfo : int { kInfoUndefined = -1, kInfoAiCores = 0, kInfoVectorCores = 1, kInfoL2Size = 2 };
enum SystemOption : unsigned { kDeterministic = 0, kDebugKernel = 1, kStrongConsistency = 2 };
enum OverflowMode : unsigned { kSaturation = 0, kInfNan = 1, kUndefined = 2 };
enum LogLevel : unsigned { kLogDebug = 0, kLogError = 3 };
enum LocationType : unsigned { kLocationHost = 0, kLocationDevice = 1, kLocationUnregistered = 2 };

struct Location {
  uint32_t id;
  LocationType type;
};
struct PointerAttributes {
  Location location;
  uint32_t page_size;
  uint32_t reserved[4];
};
struct ServerPids {
  uint32_t server;
  int32_t *pids;
  size_t count;
};

constexpr uint32_t kEventTimeLine = 0x8;
constexpr uint64_t kIpcNoPidCheck = 1;  // export flag
constexpr uint64_t kIpcPeerAccess = 1;  // import flag
constexpr size_t kIpcKeyBytes = 65;

}  // namespace kvf
