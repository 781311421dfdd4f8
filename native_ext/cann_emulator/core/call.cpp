#include "call.h"

#include <unistd.h>

#include <cstdarg>
#include <cstdio>

#include "call_log.h"
#include "faults.h"
#include "process.h"

namespace kvf {
namespace {

std::string &message() {
  static thread_local std::string text;
  return text;
}

}  // namespace

int fail(int code, const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  message() = std::string("[CANN emulation] ") + text;
  return code;
}

void set_message(const std::string &text) { message() = text; }

std::string take_message() {
  std::string taken;
  taken.swap(message());
  return taken;
}

Call &Call::with(const char *key, uint64_t value) {
  fields_ += std::string(" ") + key + "=" + std::to_string(value);
  return *this;
}

Call &Call::with(const char *key, const void *value) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", value);
  fields_ += std::string(" ") + key + "=" + text;
  return *this;
}

int Call::begin() {
  if (!process_is_usable()) return fail(code::internal, "%s: this process was forked after a device was set", name_);
  return apply_faults(name_);
}

void Call::end(int result) {
  forget_stall();
  if (logged_ == Logged::always || result != 0) log_call(name_, fields_, result);
}

int unimplemented(const char *name) {
  count_call(name);
  log_line(std::string("unimplemented ") + name);
  return fail(code::api_not_supported, "%s is not part of the emulation", name);
}

}  // namespace kvf
