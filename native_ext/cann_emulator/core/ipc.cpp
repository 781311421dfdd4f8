#include "ipc.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "../api/acl.h"
#include "call.h"
#include "memory.h"

namespace kvf {
namespace {

struct Import {
  std::shared_ptr<Region> region;
  ExportPage *page;
  Importer *entry;
};

struct Keys {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Export>> exported;
  std::map<std::string, Import> imported;
};

Keys &keys() {
  static Keys &once = *new Keys;
  return once;
}

constexpr int kPidBits = 22;  // the most that Linux gives

uint64_t pack(const ProcessId &process) { return process.start << kPidBits | static_cast<uint64_t>(process.pid); }
ProcessId unpack(uint64_t word) { return {static_cast<int>(word & ((1u << kPidBits) - 1)), word >> kPidBits}; }

struct KeyParts {
  ProcessId owner;
  int file = -1;
  uint64_t serial = 0;
};

void write_key(char *key, const KeyParts &parts) {
  std::memset(key, 0, kIpcKeyBytes);
  std::snprintf(key, kIpcKeyBytes, "kvf %d %lu %d %lu", parts.owner.pid, static_cast<unsigned long>(parts.owner.start),
                parts.file, static_cast<unsigned long>(parts.serial));
}

bool read_key(const char *key, KeyParts *parts) {
  unsigned long start = 0, serial = 0;
  if (!key || !std::memchr(key, 0, kIpcKeyBytes)) return false;
  if (std::sscanf(key, "kvf %d %lu %d %lu", &parts->owner.pid, &start, &parts->file, &serial) != 4) return false;
  parts->owner.start = start;
  parts->serial = serial;
  return true;
}

int bad_key(const char *call) { return fail(code::invalid_param, "%s: not a key of exported memory", call); }

// A slot of the list, taken over from a dead importer where none is free.
Importer *enter_importer(ExportPage *page) {
  for (Importer &entry : page->importers) {
    uint64_t holder = entry;
    if (holder && alive(unpack(holder))) continue;
    if (entry.compare_exchange_strong(holder, pack(self()))) return &entry;
  }
  return nullptr;
}

bool pid_allowed(const ExportPage &page) {
  if (page.flags & kIpcNoPidCheck) return true;
  for (int at = 0; at < page.allowed_count; ++at)
    if (page.allowed[at] == getpid()) return true;
  return false;
}

int publish(const std::shared_ptr<Region> &region, uint64_t offset, uint64_t size, uint64_t flags) {
  static std::atomic<uint64_t> serials{0};
  auto made = std::make_shared<Export>();
  made->file = make_memfd("kvf-npu-export", sizeof(ExportPage));
  made->page = made->file < 0 ? nullptr : static_cast<ExportPage *>(map_shared(made->file, sizeof(ExportPage)));
  if (!made->page) return fail(code::ipc, "no memory for an export page");
  ExportPage &page = *made->page;
  page.memory_file = region->file;
  page.physical = region->physical;
  page.offset = offset;
  page.size = size;
  page.page = region->page;
  page.flags = flags;
  page.serial = ++serials;
  write_key(made->key, {self(), made->file, page.serial});
  keys().exported[made->key] = made;
  region->exported = std::move(made);
  return code::ok;
}

int export_key(void *address, size_t size, char *key, size_t length, uint64_t flags) {
  constexpr const char *call = "aclrtIpcMemGetExportKey";
  if (!address || !key || length != kIpcKeyBytes)
    return fail(code::invalid_param, "%s: a key of %zu bytes; it has %zu", call, length, kIpcKeyBytes);
  if (flags & ~kIpcNoPidCheck)
    return fail(code::invalid_param, "%s: flags %lu", call, static_cast<unsigned long>(flags));
  Place place;
  if (find(address, 1, &place) != Side::device || place.region->imported)
    return fail(code::invalid_param, "%s: %p is not memory this process allocated", call, address);
  Region &region = *place.region;
  if (place.offset % region.page || size % region.page || size == 0)
    return fail(code::unaligned, "%s: offset %zu, size %zu; pages of this memory have %zu bytes", call, place.offset,
                size, region.page);
  if (size > region.mapped - place.offset)
    return fail(code::invalid_param, "%s: %zu bytes go past the allocation", call, size);
  const std::lock_guard<std::mutex> lock(keys().mutex);
  if (region.exported && region.exported->page->serial == 0) region.exported.reset();  // closed
  const auto &before = region.exported;
  const bool same =
      before && before->page->offset == place.offset && before->page->size == size && before->page->flags == flags;
  if (before && !same) return fail(code::ipc, "%s: this memory is exported already, in another way", call);
  if (!before) {
    if (const int error = publish(place.region, place.offset, size, flags)) return error;
  }
  std::memcpy(key, region.exported->key, kIpcKeyBytes);
  return code::ok;
}

// The exporter's page behind a key, mapped here; nullptr with the message set.
ExportPage *open_page(const char *call, const KeyParts &parts) {
  const int file = open_memfd_of(parts.owner, parts.file);
  auto *page = file < 0 ? nullptr : static_cast<ExportPage *>(map_shared(file, sizeof(ExportPage)));
  if (file >= 0) close(file);
  if (page && page->serial == parts.serial) return page;
  if (page) munmap(page, sizeof *page);
  fail(code::ipc, "%s: process %d no longer exports this", call, parts.owner.pid);
  return nullptr;
}

int map_import(const ExportPage &page, const KeyParts &parts, Device *device, uint64_t flags,
               std::shared_ptr<Region> *made) {
  auto region = std::make_shared<Region>();
  region->device = device;
  region->physical = page.physical;
  region->imported = true;
  region->peer_access = flags & kIpcPeerAccess;
  region->page = page.page;
  region->size = page.size;
  region->file = open_memfd_of(parts.owner, page.memory_file);
  if (region->file < 0) return fail(code::ipc, "the exporter, process %d, is gone", parts.owner.pid);
  void *bytes =
      mmap(nullptr, page.size, PROT_READ | PROT_WRITE, MAP_SHARED, region->file, static_cast<off_t>(page.offset));
  if (bytes == MAP_FAILED) return fail(code::out_of_memory, "no addresses left for an import");
  madvise(bytes, page.size, MADV_DONTFORK);
  region->mapped = page.size;
  region->shadow = static_cast<unsigned char *>(bytes);
  *made = region;
  return reserve(region, page.page);
}

int import_key(void **address, const char *key, uint64_t flags) {
  constexpr const char *call = "aclrtIpcMemImportByKey";
  Device *device = nullptr;
  KeyParts parts;
  if (const int error = need_device(call, &device)) return error;
  if (!address || !read_key(key, &parts)) return bad_key(call);
  if (flags & ~kIpcPeerAccess)
    return fail(code::invalid_param, "%s: flags %lu", call, static_cast<unsigned long>(flags));
  if (parts.owner.pid == getpid())
    return fail(code::invalid_param, "%s: the exporting process cannot import its own key", call);
  const std::lock_guard<std::mutex> lock(keys().mutex);
  if (keys().imported.count(key)) return fail(code::ipc, "%s: this process imported the key already", call);
  ExportPage *page = open_page(call, parts);
  if (!page) return code::ipc;
  std::shared_ptr<Region> region;
  Importer *entry = nullptr;
  int error = code::ok;
  if (!pid_allowed(*page)) {
    error = fail(code::no_permission, "%s: process %d is not on the exporter's list", call, getpid());
  } else if (!(entry = enter_importer(page))) {
    error = fail(code::ipc, "%s: %d processes hold this key already", call, kMostImporters);
  } else if (page->serial != parts.serial) {
    error = fail(code::ipc, "%s: the exporter closed the key meanwhile", call);
  } else {
    error = map_import(*page, parts, device, flags, &region);
  }
  if (error) {
    if (entry) *entry = 0;
    munmap(page, sizeof *page);
    return error;
  }
  keys().imported[key] = {region, page, entry};
  *address = reinterpret_cast<void *>(region->address);
  return code::ok;
}

int close_key(const char *key) {
  constexpr const char *call = "aclrtIpcMemClose";
  KeyParts parts;
  if (!read_key(key, &parts)) return bad_key(call);
  const std::lock_guard<std::mutex> lock(keys().mutex);
  const auto held = keys().imported.find(key);
  if (held != keys().imported.end()) {
    retire(held->second.region);
    *held->second.entry = 0;
    munmap(held->second.page, sizeof(ExportPage));
    keys().imported.erase(held);
    return code::ok;
  }
  const auto own = keys().exported.find(key);
  if (own == keys().exported.end()) return fail(code::invalid_param, "%s: this process holds no such key", call);
  if (!own->second->retract()) return fail(code::ipc, "%s: importers must close before the exporter", call);
  keys().exported.erase(own);
  return code::ok;
}

int allow_pids(const char *key, const int32_t *pids, size_t count) {
  constexpr const char *call = "aclrtIpcMemSetImportPid";
  KeyParts parts;
  if (!read_key(key, &parts) || !pids || count == 0) return bad_key(call);
  const std::lock_guard<std::mutex> lock(keys().mutex);
  const auto own = keys().exported.find(key);
  if (own == keys().exported.end()) return fail(code::invalid_param, "%s: this process did not export the key", call);
  ExportPage &page = *own->second->page;
  if (count > static_cast<size_t>(kMostPids - page.allowed_count))
    return fail(code::invalid_param, "%s: too many processes", call);
  for (size_t at = 0; at < count; ++at) page.allowed[page.allowed_count++] = pids[at];
  return code::ok;
}

}  // namespace

Export::~Export() {
  if (page) munmap(page, sizeof *page);
  if (file >= 0) close(file);
}

bool Export::retract() {
  const uint64_t serial = page->serial.exchange(0);
  for (const Importer &entry : page->importers) {
    if (!entry || !alive(unpack(entry))) continue;
    page->serial = serial;
    return false;
  }
  return true;
}

void forget_export(const std::shared_ptr<Export> &exported) {
  const std::lock_guard<std::mutex> lock(keys().mutex);
  keys().exported.erase(exported->key);
}

aclError aclrtIpcMemGetExportKey(void *address, size_t size, char *key, size_t length, uint64_t flags) {
  return Call("aclrtIpcMemGetExportKey").with("bytes", size).with("flags", flags).run([&] {
    return export_key(address, size, key, length, flags);
  });
}

aclError aclrtIpcMemImportByKey(void **address, const char *key, uint64_t flags) {
  return Call("aclrtIpcMemImportByKey").with("flags", flags).run([&] { return import_key(address, key, flags); });
}

aclError aclrtIpcMemClose(const char *key) {
  return Call("aclrtIpcMemClose").run([&] { return close_key(key); });
}

aclError aclrtIpcMemSetImportPid(const char *key, int32_t *pids, size_t count) {
  return Call("aclrtIpcMemSetImportPid").with("count", count).run([&] { return allow_pids(key, pids, count); });
}

}  // namespace kvf
