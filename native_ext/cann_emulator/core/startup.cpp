// What torch_npu asks of CANN while it starts and ends, beyond devices.
#include "../api/startup.h"

#include <atomic>
#include <string>

#include "../api/acl.h"
#include "call.h"
#include "settings.h"

namespace kvf {
namespace {
std::atomic<bool> initialised{false};
std::atomic<int64_t> system_options[kStrongConsistency + 1];
}  // namespace

aclError aclInit(const char *) {
  return Call("aclInit").run(
      [] { return initialised.exchange(true) ? fail(code::repeated_init, "aclInit: called before") : code::ok; });
}

aclError aclFinalize() {
  return Call("aclFinalize").run([] {
    initialised = false;
    return code::ok;
  });
}

const char *aclGetRecentErrMsg() {
  // Stays valid until the thread asks again. Never null: callers stream it.
  static thread_local std::string last;
  last = take_message();
  return last.c_str();
}

const char *aclrtGetSocName() { return settings().soc.c_str(); }

aclError aclrtSetDeviceSatMode(OverflowMode mode) {
  return Call("aclrtSetDeviceSatMode").with("mode", static_cast<uint64_t>(mode)).run([] { return code::ok; });
}

aclError aclrtSetOpExecuteTimeOut(uint32_t seconds) {
  return Call("aclrtSetOpExecuteTimeOut").with("seconds", static_cast<uint64_t>(seconds)).run([] { return code::ok; });
}

aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t flag) {
  return Call("aclrtSetStreamOverflowSwitch").with("flag", static_cast<uint64_t>(flag)).run([] { return code::ok; });
}

aclError aclrtSetOpWaitTimeout(uint32_t seconds) {
  return Call("aclrtSetOpWaitTimeout").with("seconds", static_cast<uint64_t>(seconds)).run([] { return code::ok; });
}

static int set_option(const char *call, SystemOption option, int64_t value) {
  return Call(call).with("option", static_cast<uint64_t>(option)).run([&] {
    if (option > kStrongConsistency) return fail(code::invalid_param, "%s: option %u", call, option);
    system_options[option] = value;
    return code::ok;
  });
}

aclError aclrtSetSysParamOpt(SystemOption option, int64_t value) {
  return set_option("aclrtSetSysParamOpt", option, value);
}

aclError aclrtCtxSetSysParamOpt(SystemOption option, int64_t value) {
  return set_option("aclrtCtxSetSysParamOpt", option, value);
}

aclError aclDestroyDataBuffer(const void *buffer) {
  return buffer ? fail(code::invalid_param, "aclDestroyDataBuffer: the emulation made no buffers") : code::ok;
}

aclError aclrtGetSysParamOpt(SystemOption option, int64_t *value) {
  return Call("aclrtGetSysParamOpt").with("option", static_cast<uint64_t>(option)).run([&] {
    if (option > kStrongConsistency || !value)
      return fail(code::invalid_param, "aclrtGetSysParamOpt: option %u", option);
    *value = system_options[option];
    return code::ok;
  });
}

void aclAppLog(LogLevel, const char *, const char *, uint32_t, const char *, ...) {}

}  // namespace kvf
