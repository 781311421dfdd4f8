// Copies and fills: the rules about sides, bounds, alignment and imported memory, then a memcpy between shadows.
#include <cstring>

#include "../api/acl.h"
#include "call.h"
#include "memory.h"
#include "stream.h"

namespace kvf {
namespace {

// One end of a copy after the checks: host bytes, or a place on a device.
struct End {
  Side side = Side::host;
  Place place;
  unsigned char *host = nullptr;

  unsigned char *bytes() const { return side == Side::device ? place.bytes() : host; }
  bool live() const { return side != Side::device || place.region->live; }
};

struct Copy {
  End to, from;
  size_t count = 0;

  bool on_host(bool pinned_only) const {
    for (const End *end : {&to, &from})
      if (end->side == Side::host && !(pinned_only && inside_pinned_host(end->host, count))) return true;
    return false;
  }

  int execute() const {
    if (!to.live() || !from.live()) return fail(code::device_memory, "the memory of a copy was freed before it ran");
    std::memmove(to.bytes(), from.bytes(), count);
    return code::ok;
  }
};

int look_up(const char *call, const char *which, const void *address, size_t count, End *end) {
  end->side = find(address, count, &end->place);
  end->host = static_cast<unsigned char *>(const_cast<void *>(address));
  if (end->side == Side::outside)
    return fail(code::invalid_param, "%s: %s %p, %zu bytes, is not inside one allocation", call, which, address, count);
  return code::ok;
}

int check_sides(const char *call, const Copy &copy, MemcpyKind kind) {
  if (kind == kByAddress) return code::ok;
  if (kind > kBetweenDevices || kind == kHostToBufferToDevice)
    return fail(code::invalid_param, "%s: kind %u is not part of the emulation", call, kind);
  const bool from_device = kind != kHostToHost && kind != kHostToDevice;
  const bool to_device = kind != kHostToHost && kind != kDeviceToHost;
  if ((copy.to.side == Side::device) != to_device || (copy.from.side == Side::device) != from_device)
    return fail(code::wrong_memory_side, "%s: kind %u does not fit the addresses", call, kind);
  if (kind != kInsideDevice && kind != kBetweenDevices) return code::ok;
  const bool same = copy.to.place.region->physical == copy.from.place.region->physical;
  if (same != (kind == kInsideDevice))
    return fail(code::invalid_param, "%s: kind %u does not fit the devices", call, kind);
  return code::ok;
}

// Memory of another card, mapped by IPC: only explicit device-to-device copies, and no blocking one inside that card.
int check_foreign(const char *call, const Copy &copy, MemcpyKind kind, bool blocking) {
  for (const End *end : {&copy.to, &copy.from}) {
    if (end->side != Side::device || !end->place.region->foreign()) continue;
    if (kind != kDeviceToDevice && kind != kBetweenDevices && kind != kInsideDevice)
      return fail(code::invalid_param, "%s: kind %u on memory imported from another device", call, kind);
    if (!end->place.region->peer_access)
      return fail(code::no_permission, "%s: the memory was imported without peer access", call);
    if (blocking && copy.to.place.region->physical == copy.from.place.region->physical)
      return fail(code::not_supported, "%s: a blocking copy inside the device that memory was imported from", call);
  }
  return code::ok;
}

int check_peers(const char *call, const Copy &copy, Device *device) {
  for (const End *end : {&copy.to, &copy.from}) {
    if (end->side != Side::device || end->place.region->imported || device->reaches(end->place.region->physical))
      continue;
    return fail(code::no_permission, "%s: device %d did not enable access to device %d", call, device->physical,
                end->place.region->physical);
  }
  return code::ok;
}

int check(const char *call, Copy *copy, void *to, size_t room, const void *from, size_t count, MemcpyKind kind,
          Device *device, bool blocking) {
  if (!to || !from) return fail(code::invalid_param, "%s: null pointer", call);
  if (count > room) return fail(code::invalid_param, "%s: %zu bytes into room for %zu", call, count, room);
  if (count == 0) return fail(code::invalid_param, "%s: no bytes", call);
  copy->count = count;
  if (const int error = look_up(call, "the target", to, count, &copy->to)) return error;
  if (const int error = look_up(call, "the source", from, count, &copy->from)) return error;
  if (const int error = check_sides(call, *copy, kind)) return error;
  if (const int error = check_foreign(call, *copy, kind, blocking)) return error;
  const bool between = copy->to.side == Side::device && copy->from.side == Side::device;
  return between ? check_peers(call, *copy, device) : code::ok;
}

int copy_async(void *to, size_t room, const void *from, size_t count, MemcpyKind kind, aclrtStream handle) {
  constexpr const char *call = "aclrtMemcpyAsync";
  std::shared_ptr<Stream> stream;
  Copy copy;
  if (const int error = need_stream(call, handle, &stream)) return error;
  if (const int error = check(call, &copy, to, room, from, count, kind, stream->device, false)) return error;
  if (copy.to.side == Side::host && copy.from.side == Side::host)
    return fail(code::wrong_memory_side, "%s: both addresses are on the host", call);
  const bool between = copy.to.side == Side::device && copy.from.side == Side::device;
  const auto bits = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (between && bits % 64)
    return fail(code::unaligned, "%s: a device-to-device copy from %p to %p; both must be aligned to 64 bytes", call,
                from, to);
  stream->push([copy](const Running &) { return copy.execute(); });
  // Pageable host memory is the caller's again on return. An error stays with the stream, for its next synchronize.
  if (copy.on_host(true)) stream->wait_quiet();
  return code::ok;
}

int fill_place(const char *call, void *address, size_t room, size_t count, End *end) {
  if (!address || count > room) return fail(code::invalid_param, "%s: %zu bytes into room for %zu", call, count, room);
  return look_up(call, "the target", address, count, end);
}

int fill(const End &end, int32_t value, size_t count) {
  if (!end.live()) return fail(code::device_memory, "the memory of a fill was freed before it ran");
  std::memset(end.bytes(), value, count);
  return code::ok;
}

}  // namespace

aclError aclrtMemcpy(void *to, size_t room, const void *from, size_t count, MemcpyKind kind) {
  return Call("aclrtMemcpy").with("kind", static_cast<uint64_t>(kind)).with("bytes", count).run([&] {
    Device *device = nullptr;
    Copy copy;
    if (const int error = need_device("aclrtMemcpy", &device)) return error;
    if (const int error = check("aclrtMemcpy", &copy, to, room, from, count, kind, device, true)) return error;
    return copy.execute();
  });
}

aclError aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t count, MemcpyKind kind, aclrtStream stream) {
  return Call("aclrtMemcpyAsync").with("kind", static_cast<uint64_t>(kind)).with("bytes", count).run([&] {
    return copy_async(to, room, from, count, kind, stream);
  });
}

aclError aclrtMemset(void *address, size_t room, int32_t value, size_t count) {
  return Call("aclrtMemset").with("bytes", count).run([&] {
    Device *device = nullptr;
    End end;
    if (const int error = need_device("aclrtMemset", &device)) return error;
    if (const int error = fill_place("aclrtMemset", address, room, count, &end)) return error;
    return fill(end, value, count);
  });
}

aclError aclrtMemsetAsync(void *address, size_t room, int32_t value, size_t count, aclrtStream handle) {
  return Call("aclrtMemsetAsync").with("bytes", count).run([&] {
    std::shared_ptr<Stream> stream;
    End end;
    if (const int error = need_stream("aclrtMemsetAsync", handle, &stream)) return error;
    if (const int error = fill_place("aclrtMemsetAsync", address, room, count, &end)) return error;
    if (end.side != Side::device) return fail(code::wrong_memory_side, "aclrtMemsetAsync: %p is host memory", address);
    stream->push([end, value, count](const Running &) { return fill(end, value, count); });
    return code::ok;
  });
}

}  // namespace kvf
