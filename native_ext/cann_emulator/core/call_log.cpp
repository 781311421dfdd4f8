#include "call_log.h"

#include <fcntl.h>
#include <unistd.h>

#include "settings.h"

namespace kvf {
namespace {

int log_file() {
  static const int file = settings().log_path.empty()
                              ? -1
                              : open(settings().log_path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  return file;
}

}  // namespace

void log_line(const std::string &text) {
  if (log_file() < 0) return;
  const std::string line = std::to_string(getpid()) + " " + text + "\n";
  // A single write: lines of different processes do not mix.
  if (write(log_file(), line.data(), line.size()) < 0) return;
}

void log_call(const char *name, const std::string &fields, int result) {
  if (log_file() < 0) return;
  log_line(name + fields + " rc=" + std::to_string(result));
}

}  // namespace kvf
