// How ranks find each other: a root info names a memfd of the process that made it, and all ranks map that page.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "../api/hccl.h"
#include "../core/process.h"

namespace kvf {

constexpr uint32_t kMostRanks = 64;

struct RankSlot {
  std::atomic<int> pid;
  std::atomic<uint64_t> start;
  std::atomic<int> physical;
  std::atomic<uint32_t> left;      // destroyed its communicator in good order
  std::atomic<uint32_t> doorbell;  // futex: something moved that this rank may be waiting for
};

// The bytes of one ordered pair of ranks, first in first out.
struct Ring {
  std::atomic<uint64_t> written, read;
  std::atomic<uint32_t> error;  // set by whoever saw it, for both
  alignas(64) unsigned char bytes[];
};

struct RootPage {
  enum State : uint32_t { open, complete, failed };

  uint64_t magic;
  std::atomic<uint64_t> shape;  // ranks and buffer size, set by the first who joins: all must agree
  std::atomic<uint32_t> joined;
  std::atomic<uint32_t> state;
  RankSlot slots[kMostRanks];
};

// A mapped root page with its rings.
class Meeting {
 public:
  ~Meeting();
  RootPage *page = nullptr;
  uint32_t ranks = 0;
  size_t ring_bytes = 0;

  Ring &ring(uint32_t from, uint32_t to) const;
  ProcessId process(uint32_t rank) const;
  void ring_doorbell(uint32_t rank) const;
  void wait_doorbell(uint32_t rank, uint32_t seen) const;  // a millisecond at most

 private:
  friend HcclResult meet(const HcclRootInfo &, uint32_t, uint32_t, uint32_t, int, std::shared_ptr<Meeting> *);
  size_t mapped_ = 0;
};

HcclResult make_root(HcclRootInfo *root);

// Blocks until all ranks are there, for the connect timeout at most.
HcclResult meet(const HcclRootInfo &root, uint32_t ranks, uint32_t rank, uint32_t buffer_megabytes, int physical,
                std::shared_ptr<Meeting> *met);

}  // namespace kvf

// Sets the message, gives the HCCL code back.
#define KVF_HCCL_FAIL(code, ...) static_cast<kvf::HcclResult>(kvf::fail(code, __VA_ARGS__))
