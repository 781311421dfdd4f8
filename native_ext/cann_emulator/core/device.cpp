#include "device.h"

#include <unistd.h>

#include <deque>

#include "../api/acl.h"
#include "call.h"
#include "process.h"
#include "settings.h"
#include "stream.h"

namespace kvf {
namespace {

thread_local Device *current = nullptr;

std::deque<Device> &devices() {
  static std::deque<Device> &all = *[] {
    auto *made = new std::deque<Device>;
    for (const int physical : settings().visible) {
      Device &device = made->emplace_back();
      device.index = static_cast<int>(made->size()) - 1;
      device.physical = physical;
    }
    return made;
  }();
  return all;
}

int bad_device(const char *call, int64_t device) {
  return fail(code::invalid_device, "%s: device %ld; this process sees %d", call, static_cast<long>(device),
              device_count());
}

bool is_super_pod() { return settings().soc.find("Ascend910_93") == 0; }

}  // namespace

bool Device::take(size_t bytes) {
  size_t before = used;
  do {
    if (before + bytes > settings().hbm_bytes) return false;
  } while (!used.compare_exchange_weak(before, before + bytes));
  return true;
}

int device_count() { return static_cast<int>(devices().size()); }

Device *device_at(int index) { return index >= 0 && index < device_count() ? &devices()[index] : nullptr; }

Device *current_device() { return current; }

int need_device(const char *call, Device **device) {
  *device = current;
  return current ? code::ok : fail(code::no_context, "%s: no device was set in this thread", call);
}

aclError aclrtGetDeviceCount(uint32_t *count) {
  return Call("aclrtGetDeviceCount", Call::Logged::on_error).run([&] {
    if (!count) return fail(code::invalid_param, "aclrtGetDeviceCount: null pointer");
    *count = static_cast<uint32_t>(device_count());
    return code::ok;
  });
}

aclError aclrtSetDevice(int32_t index) {
  return Call("aclrtSetDevice").with("device", static_cast<uint64_t>(index)).run([&] {
    Device *device = device_at(index);
    if (!device) return bad_device("aclrtSetDevice", index);
    mark_used();
    device->active = true;
    current = device;
    return code::ok;
  });
}

aclError aclrtGetDevice(int32_t *index) {
  return Call("aclrtGetDevice", Call::Logged::on_error).run([&] {
    Device *device = nullptr;
    if (!index) return fail(code::invalid_param, "aclrtGetDevice: null pointer");
    if (const int error = need_device("aclrtGetDevice", &device)) return error;
    *index = device->index;
    return code::ok;
  });
}

// Leaves memory and streams as they are; the process is about to end where torch_npu calls this.
aclError aclrtResetDevice(int32_t index) {
  return Call("aclrtResetDevice").with("device", static_cast<uint64_t>(index)).run([&] {
    Device *device = device_at(index);
    if (!device) return bad_device("aclrtResetDevice", index);
    if (current == device) current = nullptr;
    device->active = false;
    return code::ok;
  });
}

// A device has one context, and its handle is the device itself.
aclError aclrtGetCurrentContext(aclrtContext *context) {
  return Call("aclrtGetCurrentContext", Call::Logged::on_error).run([&] {
    Device *device = nullptr;
    if (!context) return fail(code::invalid_param, "aclrtGetCurrentContext: null pointer");
    if (const int error = need_device("aclrtGetCurrentContext", &device)) return error;
    *context = device;
    return code::ok;
  });
}

aclError aclrtSetCurrentContext(aclrtContext context) {
  return Call("aclrtSetCurrentContext").run([&] {
    for (Device &device : devices()) {
      if (context != &device || !device.active) continue;
      current = &device;
      return code::ok;
    }
    return fail(code::no_context, "aclrtSetCurrentContext: %p is no context of this process", context);
  });
}

aclError aclrtGetPrimaryCtxState(int32_t index, uint32_t *flags, int32_t *active) {
  return Call("aclrtGetPrimaryCtxState", Call::Logged::on_error).run([&] {
    Device *device = device_at(index);
    if (!device) return bad_device("aclrtGetPrimaryCtxState", index);
    if (!active) return fail(code::invalid_param, "aclrtGetPrimaryCtxState: null pointer");
    if (flags) *flags = 0;
    *active = device->active ? 1 : 0;
    return code::ok;
  });
}

// Three numberings: what the process sees (user), what the server has (logic), and the chips (physical), here the same.
aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t *const logic) {
  return Call("aclrtGetLogicDevIdByUserDevId", Call::Logged::on_error).run([&] {
    Device *device = device_at(user);
    if (!device || !logic) return bad_device("aclrtGetLogicDevIdByUserDevId", user);
    *logic = device->physical;
    return code::ok;
  });
}

aclError aclrtGetUserDevIdByLogicDevId(const int32_t logic, int32_t *const user) {
  return Call("aclrtGetUserDevIdByLogicDevId", Call::Logged::on_error).run([&] {
    for (Device &device : devices()) {
      if (device.physical != logic || !user) continue;
      *user = device.index;
      return code::ok;
    }
    return bad_device("aclrtGetUserDevIdByLogicDevId", logic);
  });
}

static int same_number(const char *call, int32_t from, int32_t *to) {
  return Call(call, Call::Logged::on_error).run([&] {
    if (from < 0 || from >= settings().physical_devices || !to) return bad_device(call, from);
    *to = from;
    return code::ok;
  });
}

aclError aclrtGetPhyDevIdByLogicDevId(const int32_t logic, int32_t *const physical) {
  return same_number("aclrtGetPhyDevIdByLogicDevId", logic, physical);
}

aclError aclrtGetLogicDevIdByPhyDevId(const int32_t physical, int32_t *const logic) {
  return same_number("aclrtGetLogicDevIdByPhyDevId", physical, logic);
}

aclError aclrtDeviceCanAccessPeer(int32_t *can_access, int32_t index, int32_t peer) {
  return Call("aclrtDeviceCanAccessPeer").run([&] {
    if (!can_access) return fail(code::invalid_param, "aclrtDeviceCanAccessPeer: null pointer");
    if (!device_at(index)) return bad_device("aclrtDeviceCanAccessPeer", index);
    if (!device_at(peer)) return bad_device("aclrtDeviceCanAccessPeer", peer);
    *can_access = index != peer;
    return code::ok;
  });
}

aclError aclrtDeviceEnablePeerAccess(int32_t peer, uint32_t flags) {
  return Call("aclrtDeviceEnablePeerAccess").with("peer", static_cast<uint64_t>(peer)).run([&] {
    Device *device = nullptr;
    if (const int error = need_device("aclrtDeviceEnablePeerAccess", &device)) return error;
    if (!device_at(peer) || device_at(peer) == device) return bad_device("aclrtDeviceEnablePeerAccess", peer);
    if (flags) return fail(code::invalid_param, "aclrtDeviceEnablePeerAccess: flags %u", flags);
    const std::lock_guard<std::mutex> lock(device->mutex);
    device->peers.insert(device_at(peer)->physical);
    return code::ok;
  });
}

aclError aclrtDeviceDisablePeerAccess(int32_t peer) {
  return Call("aclrtDeviceDisablePeerAccess").with("peer", static_cast<uint64_t>(peer)).run([&] {
    Device *device = nullptr;
    if (const int error = need_device("aclrtDeviceDisablePeerAccess", &device)) return error;
    if (!device_at(peer)) return bad_device("aclrtDeviceDisablePeerAccess", peer);
    const std::lock_guard<std::mutex> lock(device->mutex);
    device->peers.erase(device_at(peer)->physical);
    return code::ok;
  });
}

aclError aclrtGetDeviceInfo(uint32_t index, DeviceAttribute attribute, int64_t *value) {
  return Call("aclrtGetDeviceInfo").with("attribute", static_cast<uint64_t>(attribute)).run([&] {
    Device *device = device_at(static_cast<int>(index));
    if (!device || !value) return bad_device("aclrtGetDeviceInfo", index);
    const bool of_super_pod = attribute == kSuperPodDevice || attribute == kSuperPodServer || attribute == kSuperPod;
    if (of_super_pod && !is_super_pod()) return fail(code::not_supported, "aclrtGetDeviceInfo: no super pod");
    switch (attribute) {
      case kAiCores:
      case kCubeCores: *value = 20; break;
      case kVectorCores: *value = 40; break;
      case kTotalMemory: *value = static_cast<int64_t>(settings().hbm_bytes); break;
      case kPhysicalChip:
      case kSuperPodDevice: *value = device->physical; break;
      case kSuperPodServer:
      case kSuperPod: *value = 0; break;
      default:
        return fail(code::invalid_param, "aclrtGetDeviceInfo: attribute %u is not part of the emulation", attribute);
    }
    return code::ok;
  });
}

aclError aclGetDeviceCapability(uint32_t index, DeviceInfo info, int64_t *value) {
  return Call("aclGetDeviceCapability").with("info", static_cast<uint64_t>(info)).run([&] {
    if (!device_at(static_cast<int>(index)) || !value) return bad_device("aclGetDeviceCapability", index);
    switch (info) {
      case kInfoAiCores: *value = 20; break;
      case kInfoVectorCores: *value = 40; break;
      case kInfoL2Size: *value = 192ll << 20; break;
      default: return fail(code::invalid_param, "aclGetDeviceCapability: info %d", info);
    }
    return code::ok;
  });
}

aclError aclrtDeviceGetBareTgid(int32_t *pid) {
  return Call("aclrtDeviceGetBareTgid").run([&] {
    if (!pid) return fail(code::invalid_param, "aclrtDeviceGetBareTgid: null pointer");
    *pid = getpid();
    return code::ok;
  });
}

}  // namespace kvf
