#include "settings.h"

#include <cctype>
#include <cstdio>
#include <cstdlib>

namespace kvf {
namespace {

std::string text(const char *name, const char *otherwise) {
  const char *value = std::getenv(name);
  return value && *value ? value : otherwise;
}

double number(const char *name, double otherwise) {
  const char *value = std::getenv(name);
  if (!value || !*value) return otherwise;
  char *end = nullptr;
  const double parsed = std::strtod(value, &end);
  if (*end == '\0' && parsed >= 0) return parsed;
  std::fprintf(stderr, "CANN emulation: %s=%s is no number\n", name, value);
  std::abort();
}

Settings read() {
  Settings read;
  read.physical_devices = static_cast<int>(number("KVFABRIC_EMULATED_NPUS", 2));
  read.visible = parse_visible(std::getenv("ASCEND_RT_VISIBLE_DEVICES"), read.physical_devices);
  read.soc = text("KVFABRIC_EMULATED_SOC", "Ascend910B3");
  read.hbm_bytes = static_cast<size_t>(number("KVFABRIC_EMULATED_HBM", 8.0 * (1ull << 30)));
  read.log_path = text("KVFABRIC_EMULATED_LOG", "");
  read.faults = text("KVFABRIC_EMULATED_FAULTS", "");
  read.connect_timeout_seconds = number("HCCL_CONNECT_TIMEOUT", 120);
  read.exec_timeout_seconds = number("HCCL_EXEC_TIMEOUT", 1836);
  read.buffer_megabytes = static_cast<uint32_t>(number("HCCL_BUFFSIZE", 200));
  return read;
}

}  // namespace

std::vector<int> parse_visible(const char *list, int physical_devices) {
  std::vector<int> visible;
  if (!list) {
    for (int device = 0; device < physical_devices; ++device) visible.push_back(device);
    return visible;
  }
  const char *at = list;
  while (std::isdigit(static_cast<unsigned char>(*at))) {
    char *end = nullptr;
    const long device = std::strtol(at, &end, 10);
    const bool ascending = visible.empty() || device > visible.back();
    if (device >= physical_devices || !ascending || (*end != '\0' && *end != ',')) break;
    visible.push_back(static_cast<int>(device));
    if (*end == '\0') break;
    at = end + 1;
  }
  return visible;
}

const Settings &settings() {
  static const Settings &once = *new Settings(read());  // never destroyed: worker threads outlive static destructors
  return once;
}

}  // namespace kvf
