// The devices this process sees, and the one that is current in a thread.
#pragma once
#include <atomic>
#include <cstddef>
#include <mutex>
#include <set>

namespace kvf {

struct Device {
  int index;     // as the process counts
  int physical;  // as the server counts
  std::atomic<size_t> used{0};
  std::atomic<bool> active{false};
  std::mutex mutex;
  std::set<int> peers;  // physical devices that this one may reach

  // Takes bytes of its memory, or says no.
  bool take(size_t bytes);
  void give(size_t bytes) { used -= bytes; }
  bool reaches(int other) {
    const std::lock_guard<std::mutex> lock(mutex);
    return other == physical || peers.count(other) != 0;
  }
};

int device_count();
Device *device_at(int index);  // nullptr where the process sees none
Device *current_device();      // nullptr in a thread that set none
int need_device(const char *call, Device **device);

}  // namespace kvf
