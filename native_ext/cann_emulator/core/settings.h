// What the environment says, read once at first use.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvf {

struct Settings {
  int physical_devices;
  std::vector<int> visible;  // position is the index a process sees, value the physical device
  std::string soc;
  size_t hbm_bytes;
  std::string log_path;
  std::string faults;
  double connect_timeout_seconds;
  double exec_timeout_seconds;
  uint32_t buffer_megabytes;
};

const Settings &settings();

// ASCEND_RT_VISIBLE_DEVICES: ascending numbers with commas; what follows the first bad entry is not looked at.
std::vector<int> parse_visible(const char *text, int physical_devices);

}  // namespace kvf
