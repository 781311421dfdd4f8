// Who this process is, whether another one lives, and memory that goes with its process.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvf {

// The start time guards against a pid used again.
struct ProcessId {
  int pid = 0;
  uint64_t start = 0;
};

ProcessId self();
bool alive(const ProcessId &process);  // a zombie is dead

int make_memfd(const char *name, size_t bytes);         // -1 where there is none left
int open_memfd_of(const ProcessId &process, int file);  // -1 where the process or its file is gone
void *map_shared(int file, size_t bytes);               // nullptr on failure; not inherited by forked children

void mark_used();  // from now on a forked child cannot use the emulation
bool process_is_usable();

}  // namespace kvf
