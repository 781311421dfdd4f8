#include "../api/op_compiler.h"

#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "../core/call.h"

namespace kvf {
namespace {

struct Options {
  std::mutex mutex;
  std::map<unsigned, std::string> values;
};

Options &options() {
  static Options &once = *new Options;
  return once;
}

}  // namespace

aclError aclSetCompileopt(CompileOption option, const char *value) {
  return Call("aclSetCompileopt").with("option", static_cast<uint64_t>(option)).run([&] {
    const std::lock_guard<std::mutex> lock(options().mutex);
    options().values[option] = value ? value : "";
    return code::ok;
  });
}

size_t aclGetCompileoptSize(CompileOption option) {
  const std::lock_guard<std::mutex> lock(options().mutex);
  return options().values[option].size() + 1;
}

aclError aclGetCompileopt(CompileOption option, char *value, size_t length) {
  return Call("aclGetCompileopt").with("option", static_cast<uint64_t>(option)).run([&] {
    const std::lock_guard<std::mutex> lock(options().mutex);
    const std::string &held = options().values[option];
    if (!value || length < held.size() + 1)
      return fail(code::invalid_param, "aclGetCompileopt: room for %zu bytes", length);
    std::memcpy(value, held.c_str(), held.size() + 1);
    return code::ok;
  });
}

}  // namespace kvf
