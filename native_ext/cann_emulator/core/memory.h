// Every device allocation and every mapping of another process's. The device address is reserved without access: only
// the emulation, through the shadow, reaches the bytes.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "device.h"

namespace kvf {

struct Export;  // ipc.h

struct Region {
  uintptr_t address = 0;
  size_t size = 0;    // what was asked for; copies stay inside
  size_t mapped = 0;  // whole pages
  size_t page = 0;    // 4 KiB or 2 MiB
  unsigned char *shadow = nullptr;
  int file = -1;
  Device *device = nullptr;  // of this process; for an import the device that was current
  int physical = -1;         // where the bytes are
  bool imported = false;
  bool peer_access = false;  // of an import
  std::atomic<bool> live{true};
  std::shared_ptr<Export> exported;

  ~Region();
  bool foreign() const { return imported && physical != device->physical; }
};

// A checked range of device memory. It keeps the mapping: a late op meets a region that is not live, and no fault.
struct Place {
  std::shared_ptr<Region> region;
  size_t offset = 0;
  unsigned char *bytes() const { return region->shadow + offset; }
};

enum class Side { host, device, outside };

// `outside`: it touches device memory, but does not lie wholly inside one live allocation.
Side find(const void *address, size_t count, Place *place);

int reserve(std::shared_ptr<Region> region, size_t alignment);  // chooses the device address and enters the region
std::shared_ptr<Region> region_at(const void *address);         // one that starts there
void retire(const std::shared_ptr<Region> &region);

bool inside_pinned_host(const void *address, size_t count);
void lock_memory_for_fork();
void unlock_memory_after_fork();
void drop_files_after_fork();

}  // namespace kvf
