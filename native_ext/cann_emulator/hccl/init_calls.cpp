// Making, naming and destroying communicators.
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>

#include "../api/hccl.h"
#include "../core/call.h"
#include "../core/settings.h"
#include "communicator.h"

namespace kvf {
namespace {

constexpr size_t kMegabyte = 1u << 20;

// Two threads must not initialise on one device of a process at the same time.
class Initialising {
 public:
  explicit Initialising(Device *device) : device_(device) {
    const std::lock_guard<std::mutex> lock(mutex());
    alone = busy().insert(device).second;
  }
  ~Initialising() {
    const std::lock_guard<std::mutex> lock(mutex());
    if (alone) busy().erase(device_);
  }
  bool alone;

 private:
  static std::mutex &mutex() {
    static std::mutex &once = *new std::mutex;
    return once;
  }
  static std::set<Device *> &busy() {
    static std::set<Device *> &once = *new std::set<Device *>;
    return once;
  }
  Device *device_;
};

struct Wishes {
  uint32_t buffer_megabytes = settings().buffer_megabytes;
  double exec_timeout_seconds = settings().exec_timeout_seconds;
  char name[128] = {};
};

// Older versions of the structure end earlier; fields past their end are not looked at.
HcclResult read_config(const HcclCommConfig *config, Wishes *wishes) {
  if (!config) return KVF_HCCL_FAIL(kHcclNullPointer, "HcclCommInitRootInfoConfig: null config");
  const HcclConfigHead &head = config->head;
  if (head.magic != kHcclConfigMagic)
    return KVF_HCCL_FAIL(kHcclParameter, "config: magic %x; was it initialised?", head.magic);
  if (head.version < 1 || head.version > kHcclConfigVersion)
    return KVF_HCCL_FAIL(kHcclParameter, "config: version %u", head.version);
  const bool whole = head.size == sizeof(HcclCommConfig);
  if (head.size < offsetof(HcclCommConfig, deterministic) || head.size > sizeof(HcclCommConfig) ||
      whole != (head.version == kHcclConfigVersion))
    return KVF_HCCL_FAIL(kHcclParameter, "config: %zu bytes of version %u", head.size, head.version);
  const auto has = [&](size_t end) { return head.size >= end; };
  if (config->buffer_megabytes != kHcclNotSet) wishes->buffer_megabytes = config->buffer_megabytes;
  if (wishes->buffer_megabytes == 0) return KVF_HCCL_FAIL(kHcclParameter, "config: a buffer of 0 MB");
  if (has(offsetof(HcclCommConfig, udi))) std::memcpy(wishes->name, config->name, sizeof wishes->name - 1);
  if (has(offsetof(HcclCommConfig, algorithm)) && config->exec_timeout_seconds != -1)
    wishes->exec_timeout_seconds = config->exec_timeout_seconds;
  return kHcclOk;
}

HcclResult initialise(const char *call, uint32_t ranks, const HcclRootInfo *root, uint32_t rank, const Wishes &wishes,
                      HcclComm *comm) {
  Device *device = nullptr;
  if (need_device(call, &device)) return kHcclRuntime;
  if (!root || !comm) return KVF_HCCL_FAIL(kHcclNullPointer, "%s: null pointer", call);
  if (ranks == 0 || ranks > kMostRanks || rank >= ranks)
    return KVF_HCCL_FAIL(kHcclParameter, "%s: rank %u of %u", call, rank, ranks);
  const Initialising initialising(device);
  if (!initialising.alone)
    return KVF_HCCL_FAIL(kHcclInternal, "%s: another thread initialises a communicator on device %d", call,
                         device->index);
  // A communicator owns two buffers on the device, however little it sends.
  const size_t device_bytes = 2 * wishes.buffer_megabytes * kMegabyte;
  if (!device->take(device_bytes))
    return KVF_HCCL_FAIL(kHcclOutOfMemory, "%s: no %zu bytes for buffers", call, device_bytes);
  std::shared_ptr<Meeting> meeting;
  if (const HcclResult error = meet(*root, ranks, rank, wishes.buffer_megabytes, device->physical, &meeting)) {
    device->give(device_bytes);
    return error;
  }
  auto made = std::make_shared<Communicator>(meeting, rank, device, device_bytes, wishes.exec_timeout_seconds);
  std::memcpy(made->name, wishes.name, sizeof made->name);
  if (!made->name[0]) std::snprintf(made->name, sizeof made->name, "group_%p", static_cast<void *>(made.get()));
  *comm = enter_communicator(std::move(made));
  return kHcclOk;
}

template <class Body>
HcclResult with_communicator(const char *call, HcclComm handle, Body body) {
  const auto comm = find_communicator(handle);
  return comm ? body(comm)
              : KVF_HCCL_FAIL(handle ? kHcclParameter : kHcclNullPointer, "%s: %p is no communicator", call, handle);
}

}  // namespace

HcclResult HcclGetRootInfo(HcclRootInfo *root) {
  return Call("HcclGetRootInfo").run([&] {
    Device *device = nullptr;
    if (!root) return KVF_HCCL_FAIL(kHcclNullPointer, "HcclGetRootInfo: null pointer");
    if (need_device("HcclGetRootInfo", &device)) return kHcclRuntime;
    return make_root(root);
  });
}

HcclResult HcclCommInitRootInfo(uint32_t ranks, const HcclRootInfo *root, uint32_t rank, HcclComm *comm) {
  return Call("HcclCommInitRootInfo")
      .with("ranks", static_cast<uint64_t>(ranks))
      .with("rank", static_cast<uint64_t>(rank))
      .run([&] { return initialise("HcclCommInitRootInfo", ranks, root, rank, Wishes(), comm); });
}

HcclResult HcclCommInitRootInfoConfig(uint32_t ranks, const HcclRootInfo *root, uint32_t rank,
                                      const HcclCommConfig *config, HcclComm *comm) {
  Call call("HcclCommInitRootInfoConfig");
  return call.with("ranks", static_cast<uint64_t>(ranks)).with("rank", static_cast<uint64_t>(rank)).run([&] {
    Wishes wishes;
    if (const HcclResult error = read_config(config, &wishes)) return error;
    call.with("buffer", static_cast<uint64_t>(wishes.buffer_megabytes));
    return initialise("HcclCommInitRootInfoConfig", ranks, root, rank, wishes, comm);
  });
}

uint32_t HcclGetCommConfigCapability() { return kHcclConfigCapability; }

// A communicator in use is aborted and stays; the caller asks again until its operations are gone.
HcclResult HcclCommDestroy(HcclComm handle) {
  return Call("HcclCommDestroy").with("comm", handle).run([&] {
    return with_communicator("HcclCommDestroy", handle, [&](const auto &comm) {
      comm->abort();
      if (comm->busy()) return KVF_HCCL_FAIL(kHcclAgain, "HcclCommDestroy: operations are in flight");
      forget_communicator(handle);
      return kHcclOk;
    });
  });
}

HcclResult HcclGetCommName(HcclComm handle, char *name) {
  return Call("HcclGetCommName", Call::Logged::on_error).run([&] {
    return with_communicator("HcclGetCommName", handle, [&](const auto &comm) {
      if (!name) return KVF_HCCL_FAIL(kHcclNullPointer, "HcclGetCommName: null pointer");
      std::memcpy(name, comm->name, sizeof comm->name);
      return kHcclOk;
    });
  });
}

HcclResult HcclGetRankSize(HcclComm handle, uint32_t *ranks) {
  return Call("HcclGetRankSize", Call::Logged::on_error).run([&] {
    return with_communicator("HcclGetRankSize", handle, [&](const auto &comm) {
      if (!ranks) return KVF_HCCL_FAIL(kHcclNullPointer, "HcclGetRankSize: null pointer");
      *ranks = comm->meeting->ranks;
      return kHcclOk;
    });
  });
}

HcclResult HcclGetRankId(HcclComm handle, uint32_t *rank) {
  return Call("HcclGetRankId", Call::Logged::on_error).run([&] {
    return with_communicator("HcclGetRankId", handle, [&](const auto &comm) {
      if (!rank) return KVF_HCCL_FAIL(kHcclNullPointer, "HcclGetRankId: null pointer");
      *rank = comm->rank;
      return kHcclOk;
    });
  });
}

HcclResult HcclGetCommAsyncError(HcclComm handle, HcclResult *error) {
  return Call("HcclGetCommAsyncError", Call::Logged::on_error).run([&] {
    return with_communicator("HcclGetCommAsyncError", handle, [&](const auto &comm) {
      if (!error) return KVF_HCCL_FAIL(kHcclNullPointer, "HcclGetCommAsyncError: null pointer");
      *error = comm->error();
      return kHcclOk;
    });
  });
}

}  // namespace kvf
