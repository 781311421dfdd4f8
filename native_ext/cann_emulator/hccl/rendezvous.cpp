#include "rendezvous.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>

#include "../core/call.h"
#include "../core/faults.h"
#include "../core/settings.h"

namespace kvf {
namespace {

constexpr uint64_t kMagic = 0x6b766620726f6f74;
constexpr size_t kPageBytes = 4096;
constexpr size_t kMegabyte = 1u << 20;
constexpr size_t kMostRingBytes = kMegabyte;  // small, so that a transfer of any size passes in pieces

// What the opaque bytes of a root info hold.
struct RootName {
  uint64_t magic;
  ProcessId owner;
  int file;
};
static_assert(sizeof(RootName) <= sizeof(HcclRootInfo));

size_t in_pages(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }
size_t ring_span(size_t ring_bytes) { return in_pages(sizeof(Ring) + ring_bytes); }
size_t span(uint32_t ranks, size_t ring_bytes) {
  return in_pages(sizeof(RootPage)) + ranks * ranks * ring_span(ring_bytes);
}

// Files of the roots made here. The one is closed once its ranks have met: each has its own mapping by then.
struct Roots {
  std::mutex mutex;
  std::map<int, bool> open;
};

Roots &roots() {
  static Roots &once = *new Roots;
  return once;
}

void close_own_root(const RootName &name) {
  if (name.owner.pid != getpid()) return;
  const std::lock_guard<std::mutex> lock(roots().mutex);
  if (roots().open.erase(name.file)) close(name.file);
}

HcclResult claim(RootPage &page, uint32_t rank, int physical) {
  const ProcessId me = self();
  int nobody = 0;
  RankSlot &slot = page.slots[rank];
  if (!slot.pid.compare_exchange_strong(nobody, me.pid))
    return KVF_HCCL_FAIL(kHcclParameter, "rank %u has joined already, as process %d", rank, nobody);
  slot.start = me.start;
  slot.physical = physical;
  return kHcclOk;
}

HcclResult wait_for_all(RootPage &page, uint32_t ranks, uint32_t rank) {
  if (page.joined.fetch_add(1) + 1 == ranks) {
    uint32_t open = RootPage::open;
    page.state.compare_exchange_strong(open, RootPage::complete);
  }
  const auto until =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(settings().connect_timeout_seconds);
  while (page.state == RootPage::open && std::chrono::steady_clock::now() < until) sleep_seconds(0.001);
  uint32_t open = RootPage::open;
  page.state.compare_exchange_strong(open, RootPage::failed);  // exactly one of complete and failed, for all
  if (page.state == RootPage::complete) return kHcclOk;
  return KVF_HCCL_FAIL(kHcclTimeout, "rank %u: %u of %u ranks joined within %g s", rank, page.joined.load(), ranks,
                       settings().connect_timeout_seconds);
}

HcclResult check_devices(const RootPage &page, uint32_t ranks, uint32_t rank) {
  for (uint32_t other = 0; other < ranks; ++other)
    if (other != rank && page.slots[other].physical == page.slots[rank].physical)
      return KVF_HCCL_FAIL(kHcclParameter, "ranks %u and %u are on the same device %d", rank, other,
                           page.slots[rank].physical.load());
  return kHcclOk;
}

}  // namespace

Meeting::~Meeting() {
  if (page) munmap(page, mapped_);
}

Ring &Meeting::ring(uint32_t from, uint32_t to) const {
  auto *first = reinterpret_cast<unsigned char *>(page) + in_pages(sizeof(RootPage));
  return *reinterpret_cast<Ring *>(first + (from * ranks + to) * ring_span(ring_bytes));
}

ProcessId Meeting::process(uint32_t rank) const { return {page->slots[rank].pid, page->slots[rank].start}; }

void Meeting::ring_doorbell(uint32_t rank) const {
  std::atomic<uint32_t> &bell = page->slots[rank].doorbell;
  ++bell;
  syscall(SYS_futex, &bell, FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0);
}

void Meeting::wait_doorbell(uint32_t rank, uint32_t seen) const {
  const timespec millisecond{0, 1000000};
  syscall(SYS_futex, &page->slots[rank].doorbell, FUTEX_WAIT, seen, &millisecond, nullptr, 0);
}

HcclResult make_root(HcclRootInfo *root) {
  const int file = make_memfd("kvf-hccl-root", sizeof(RootPage));
  auto *page = file < 0 ? nullptr : static_cast<RootPage *>(map_shared(file, sizeof(RootPage)));
  if (!page) return KVF_HCCL_FAIL(kHcclMemory, "no memory for a root page");
  page->magic = kMagic;
  munmap(page, sizeof *page);
  {
    const std::lock_guard<std::mutex> lock(roots().mutex);
    roots().open[file] = true;
  }
  const RootName name{kMagic, self(), file};
  std::memset(root, 0, sizeof *root);
  std::memcpy(root, &name, sizeof name);
  return kHcclOk;
}

HcclResult meet(const HcclRootInfo &root, uint32_t ranks, uint32_t rank, uint32_t buffer_megabytes, int physical,
                std::shared_ptr<Meeting> *met) {
  RootName name;
  std::memcpy(static_cast<void *>(&name), &root, sizeof name);
  if (name.magic != kMagic) return KVF_HCCL_FAIL(kHcclParameter, "not a root info that HcclGetRootInfo gave");
  const int file = open_memfd_of(name.owner, name.file);
  if (file < 0) return KVF_HCCL_FAIL(kHcclConnect, "process %d, which gave the root info, is gone", name.owner.pid);
  auto meeting = std::make_shared<Meeting>();
  meeting->ranks = ranks;
  meeting->ring_bytes = std::min(kMostRingBytes, buffer_megabytes * kMegabyte);
  meeting->mapped_ = span(ranks, meeting->ring_bytes);
  // Growing is the same for all who agree on the shape; whoever does not is refused below and must not shrink it.
  RootPage *page = static_cast<RootPage *>(map_shared(file, sizeof(RootPage)));
  const uint64_t mine = ranks | static_cast<uint64_t>(buffer_megabytes) << 16;
  uint64_t shape = 0;
  const bool agreed =
      page && page->magic == kMagic && (page->shape.compare_exchange_strong(shape, mine) || shape == mine);
  if (page) munmap(page, sizeof *page);
  const bool grown = agreed && ftruncate(file, static_cast<off_t>(meeting->mapped_)) == 0;
  if (grown) meeting->page = static_cast<RootPage *>(map_shared(file, meeting->mapped_));
  close(file);
  if (!agreed)
    return KVF_HCCL_FAIL(kHcclParameter, "other ranks of this root info have another number of ranks or buffer size");
  if (!meeting->page) return KVF_HCCL_FAIL(kHcclMemory, "no memory for the buffers of %u ranks", ranks);
  if (meeting->page->state == RootPage::failed)
    return KVF_HCCL_FAIL(kHcclTimeout, "rank %u: another rank gave this root info up", rank);
  if (const HcclResult error = claim(*meeting->page, rank, physical)) return error;
  if (const HcclResult error = wait_for_all(*meeting->page, ranks, rank)) return error;
  close_own_root(name);
  if (const HcclResult error = check_devices(*meeting->page, ranks, rank)) return error;
  *met = std::move(meeting);
  return kHcclOk;
}

}  // namespace kvf
