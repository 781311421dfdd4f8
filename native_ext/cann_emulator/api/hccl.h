// The HCCL calls with real behaviour, and their types.
#pragma once
#include "acl_types.h"
#include "declare.h"

namespace kvf {

using HcclComm = void *;

enum HcclResult : unsigned {
  kHcclOk = 0,
  kHcclParameter = 1,
  kHcclNullPointer = 2,
  kHcclMemory = 3,
  kHcclInternal = 4,
  kHcclNotSupported = 5,
  kHcclNotFound = 6,
  kHcclUnavailable = 7,
  kHcclSystemCall = 8,
  kHcclTimeout = 9,
  kHcclConnect = 11,
  kHcclRuntime = 15,
  kHcclAgain = 20,
  kHcclRemote = 21,
  kHcclSuspending = 22,
  kHcclOutOfMemory = 24,
};

enum HcclDataType : unsigned {
  kInt8 = 0,
  kInt16 = 1,
  kInt32 = 2,
  kFloat16 = 3,
  kFloat32 = 4,
  kInt64 = 5,
  kUint64 = 6,
  kUint8 = 7,
  kUint16 = 8,
  kUint32 = 9,
  kFloat64 = 10,
  kBfloat16 = 11,
  kHifloat8 = 14,
  kFloat8E4m3 = 15,
  kFloat8E5m2 = 16,
  kFloat8E8m0 = 17,
};

enum HcclDirection : unsigned { kSend = 0, kReceive = 1 };

struct HcclRootInfo {
  char opaque[4108];
};

struct HcclItem {
  HcclDirection direction;
  void *buffer;
  uint64_t count;
  HcclDataType type;
  uint32_t peer;
};

// What the inline initialiser of the real header puts first.
struct HcclConfigHead {
  size_t size;
  uint32_t magic;
  uint32_t version;
  uint64_t reserved;
};

struct HcclCommConfig {
  HcclConfigHead head;
  uint32_t buffer_megabytes;
  uint32_t deterministic;
  char name[128];
  char udi[128];
  uint32_t op_expansion_mode;
  uint32_t traffic_class;
  uint32_t service_level;
  uint32_t world_rank;
  uint64_t job;
  uint8_t graph_zero_copy;
  int32_t exec_timeout_seconds;
  char algorithm[1600];
  char retry_enable[50];
  char retry_params[128];
  char buffer_name[128];
  uint32_t qos;
  uint64_t symmetric_window_gigabytes;
};

constexpr uint32_t kHcclConfigMagic = 0xf0f0f0f0;
constexpr uint32_t kHcclConfigVersion = 10;
constexpr uint32_t kHcclNotSet = 0xffffffff;
constexpr uint32_t kHcclDefaultBufferMegabytes = 200;
// Each bit position below this number is a field of HcclCommConfig that initialisation reads.
constexpr uint32_t kHcclConfigCapability = 12;

KVF_API(HcclResult, HcclGetRootInfo, (HcclRootInfo *root))
KVF_API(HcclResult, HcclCommInitRootInfo, (uint32_t ranks, const HcclRootInfo *root, uint32_t rank, HcclComm *comm))
KVF_API(HcclResult, HcclCommInitRootInfoConfig,
        (uint32_t ranks, const HcclRootInfo *root, uint32_t rank, const HcclCommConfig *config, HcclComm *comm))
KVF_API(uint32_t, HcclGetCommConfigCapability, ())
KVF_API(HcclResult, HcclCommDestroy, (HcclComm comm))
KVF_API(HcclResult, HcclGetCommName, (HcclComm comm, char *name))
KVF_API(HcclResult, HcclGetRankSize, (HcclComm comm, uint32_t *ranks))
KVF_API(HcclResult, HcclGetRankId, (HcclComm comm, uint32_t *rank))
KVF_API(HcclResult, HcclGetCommAsyncError, (HcclComm comm, HcclResult *error))
KVF_API(const char *, HcclGetErrorString, (HcclResult code))
KVF_API(HcclResult, HcclSend,
        (void *buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm, aclrtStream stream))
KVF_API(HcclResult, HcclRecv,
        (void *buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm, aclrtStream stream))
KVF_API(HcclResult, HcclBatchSendRecv, (HcclItem *items, uint32_t count, HcclComm comm, aclrtStream stream))

}  // namespace kvf
