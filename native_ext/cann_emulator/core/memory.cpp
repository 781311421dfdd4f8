#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <mutex>

#include "../api/acl.h"
#include "call.h"
#include "ipc.h"
#include "process.h"
#include "settings.h"
#include "stream.h"

namespace kvf {
namespace {

constexpr size_t kSmallPage = 4096;
constexpr size_t kHugePage = 2u << 20;
constexpr size_t kHugeFrom = 1u << 20;  // "huge first" takes small pages up to here

struct Table {
  std::mutex mutex;
  std::map<uintptr_t, std::shared_ptr<Region>> regions;  // by first address; they do not overlap
  std::map<uintptr_t, size_t> pinned;
};

Table &table() {
  static Table &once = *new Table;
  return once;
}

size_t rounded(size_t size, size_t page) { return (size + page - 1) / page * page; }

bool is_huge_policy(MallocPolicy policy) {
  return policy == kHugeFirst || policy == kHugeOnly || policy == kHugeFirstP2P || policy == kHugeOnlyP2P;
}

size_t page_for(MallocPolicy policy, size_t size) {
  const bool only = policy == kHugeOnly || policy == kHugeOnlyP2P;
  return is_huge_policy(policy) && (only || size > kHugeFrom) ? kHugePage : kSmallPage;
}

int allocate(const char *call, void **address, size_t size, MallocPolicy policy) {
  Device *device = nullptr;
  if (const int error = need_device(call, &device)) return error;
  if (!address || size == 0)
    return fail(code::invalid_param, "%s: %zu bytes into %p", call, size, static_cast<void *>(address));
  if (policy > kNormalOnlyP2P)
    return fail(code::invalid_param, "%s: policy %u is not part of the emulation", call, policy);
  auto region = std::make_shared<Region>();
  region->device = device;
  region->physical = device->physical;
  region->page = page_for(policy, size);
  region->size = size;
  const size_t mapped = rounded(size, region->page);
  if (mapped < size || !device->take(mapped))
    return fail(code::out_of_memory, "%s: %zu bytes on device %d, of which %zu are used", call, size, device->index,
                device->used.load());
  region->mapped = mapped;  // from here on the destructor gives them back
  region->file = make_memfd("kvf-npu-memory", mapped);
  region->shadow = region->file < 0 ? nullptr : static_cast<unsigned char *>(map_shared(region->file, mapped));
  if (!region->shadow) return fail(code::out_of_memory, "%s: the host has no memory for %zu bytes", call, size);
  if (const int error = reserve(region, is_huge_policy(policy) ? kHugePage : kSmallPage)) return error;
  *address = reinterpret_cast<void *>(region->address);
  return code::ok;
}

}  // namespace

Region::~Region() {
  if (shadow) munmap(shadow, mapped);
  if (address) munmap(reinterpret_cast<void *>(address), mapped);
  if (file >= 0) close(file);
  if (!imported && mapped) device->give(mapped);
}

int reserve(std::shared_ptr<Region> region, size_t alignment) {
  // Reserves more and cuts off both ends, since mmap aligns to small pages only.
  const size_t span = region->mapped + alignment;
  void *start = mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return fail(code::out_of_memory, "no addresses left for %zu bytes", region->mapped);
  const auto first = reinterpret_cast<uintptr_t>(start);
  const uintptr_t aligned = (first + alignment - 1) / alignment * alignment;
  if (aligned > first) munmap(start, aligned - first);
  const uintptr_t end = aligned + region->mapped;
  if (first + span > end) munmap(reinterpret_cast<void *>(end), first + span - end);
  region->address = aligned;
  const std::lock_guard<std::mutex> lock(table().mutex);
  table().regions[aligned] = std::move(region);
  return code::ok;
}

Side find(const void *pointer, size_t count, Place *place) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const std::lock_guard<std::mutex> lock(table().mutex);
  auto after = table().regions.upper_bound(address);
  if (after != table().regions.begin()) {
    const auto &region = std::prev(after)->second;
    if (address < region->address + region->mapped) {
      const size_t offset = address - region->address;
      if (offset > region->size || count > region->size - offset) return Side::outside;
      place->region = region;
      place->offset = offset;
      return Side::device;
    }
  }
  const bool runs_into_one = after != table().regions.end() && count > after->first - address;
  return runs_into_one ? Side::outside : Side::host;
}

std::shared_ptr<Region> region_at(const void *address) {
  const std::lock_guard<std::mutex> lock(table().mutex);
  const auto found = table().regions.find(reinterpret_cast<uintptr_t>(address));
  return found == table().regions.end() ? nullptr : found->second;
}

void retire(const std::shared_ptr<Region> &region) {
  const std::lock_guard<std::mutex> lock(table().mutex);
  region->live = false;
  table().regions.erase(region->address);
}

bool inside_pinned_host(const void *pointer, size_t count) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const std::lock_guard<std::mutex> lock(table().mutex);
  auto after = table().pinned.upper_bound(address);
  if (after == table().pinned.begin()) return false;
  const auto &[start, size] = *std::prev(after);
  return address - start <= size && count <= size - (address - start);
}

void lock_memory_for_fork() { table().mutex.lock(); }
void unlock_memory_after_fork() { table().mutex.unlock(); }

void drop_files_after_fork() {
  for (auto &entry : table().regions) close(entry.second->file);
}

aclError aclrtMalloc(void **address, size_t size, MallocPolicy policy) {
  return Call("aclrtMalloc").with("bytes", size).with("policy", static_cast<uint64_t>(policy)).run([&] {
    return allocate("aclrtMalloc", address, size, policy);
  });
}

aclError aclrtMallocAlign32(void **address, size_t size, MallocPolicy policy) {
  return Call("aclrtMallocAlign32").with("bytes", size).with("policy", static_cast<uint64_t>(policy)).run([&] {
    return allocate("aclrtMallocAlign32", address, size, policy);
  });
}

aclError aclrtFree(void *address) {
  return Call("aclrtFree").with("address", address).run([&] {
    const auto region = region_at(address);
    if (!region || region->imported) return fail(code::invalid_param, "aclrtFree: %p was not allocated here", address);
    if (region->exported && !region->exported->retract())
      return fail(code::memory_free, "aclrtFree: %p is imported by another process", address);
    if (region->exported) forget_export(region->exported);
    retire(region);
    return code::ok;
  });
}

aclError aclrtMallocHost(void **address, size_t size) {
  return Call("aclrtMallocHost").with("bytes", size).run([&] {
    Device *device = nullptr;
    if (const int error = need_device("aclrtMallocHost", &device)) return error;
    if (!address || size == 0) return fail(code::invalid_param, "aclrtMallocHost: %zu bytes", size);
    void *host = mmap(nullptr, rounded(size, kSmallPage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (host == MAP_FAILED) return fail(code::out_of_memory, "aclrtMallocHost: %zu bytes", size);
    const std::lock_guard<std::mutex> lock(table().mutex);
    table().pinned[reinterpret_cast<uintptr_t>(host)] = size;
    *address = host;
    return code::ok;
  });
}

aclError aclrtFreeHost(void *address) {
  return Call("aclrtFreeHost").run([&] {
    const std::lock_guard<std::mutex> lock(table().mutex);
    const auto found = table().pinned.find(reinterpret_cast<uintptr_t>(address));
    if (found == table().pinned.end())
      return fail(code::invalid_param, "aclrtFreeHost: %p was not allocated here", address);
    munmap(address, rounded(found->second, kSmallPage));
    table().pinned.erase(found);
    return code::ok;
  });
}

aclError aclrtGetMemInfo(MemoryAttribute attribute, size_t *free, size_t *total) {
  return Call("aclrtGetMemInfo", Call::Logged::on_error).with("attribute", static_cast<uint64_t>(attribute)).run([&] {
    Device *device = nullptr;
    if (const int error = need_device("aclrtGetMemInfo", &device)) return error;
    if (!free || !total) return fail(code::invalid_param, "aclrtGetMemInfo: null pointer");
    *total = settings().hbm_bytes;
    *free = *total - device->used;
    return code::ok;
  });
}

aclError aclrtPointerGetAttributes(const void *address, PointerAttributes *attributes) {
  return Call("aclrtPointerGetAttributes", Call::Logged::on_error).run([&] {
    if (!attributes) return fail(code::invalid_param, "aclrtPointerGetAttributes: null pointer");
    *attributes = {};
    Place place;
    if (find(address, 1, &place) == Side::device) {
      attributes->location = {static_cast<uint32_t>(place.region->device->index), kLocationDevice};
      attributes->page_size = static_cast<uint32_t>(place.region->page);
    } else {
      attributes->location.type = inside_pinned_host(address, 1) ? kLocationHost : kLocationUnregistered;
    }
    return code::ok;
  });
}

aclError aclrtMemGetAddressRange(void *address, void **base, size_t *size) {
  return Call("aclrtMemGetAddressRange").run([&] {
    Place place;
    if (find(address, 1, &place) != Side::device)
      return fail(code::invalid_param, "aclrtMemGetAddressRange: %p is no device memory", address);
    if (base) *base = reinterpret_cast<void *>(place.region->address);
    if (size) *size = place.region->size;
    return code::ok;
  });
}

}  // namespace kvf
