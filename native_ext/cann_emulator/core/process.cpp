#include "process.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "memory.h"

namespace kvf {
namespace {

std::atomic<bool> used{false};
std::atomic<bool> forked_after_use{false};

// The state and the start time of a process, fields 3 and 22 of its stat line.
bool read_stat(int pid, char *state, uint64_t *start) {
  const std::string path = "/proc/" + std::to_string(pid) + "/stat";
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  char text[1024];
  const ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return false;
  text[length] = '\0';
  const char *at = std::strrchr(text, ')');  // the name before may hold anything
  if (!at) return false;
  *state = at[2];
  for (int field = 2; field < 22 && at; ++field) at = std::strchr(at + 1, ' ');
  if (!at) return false;
  *start = std::strtoull(at, nullptr, 10);
  return true;
}

void in_forked_child() {
  if (!used) return;
  forked_after_use = true;
  drop_files_after_fork();  // else a fork would keep its parent's device memory alive
}

}  // namespace

ProcessId self() {
  ProcessId me;
  char state = 0;
  me.pid = getpid();
  read_stat(me.pid, &state, &me.start);
  return me;
}

bool alive(const ProcessId &process) {
  char state = 0;
  uint64_t start = 0;
  if (process.pid <= 0 || !read_stat(process.pid, &state, &start)) return false;
  return state != 'Z' && state != 'X' && (process.start == 0 || process.start == start);
}

int make_memfd(const char *name, size_t bytes) {
  const int file = memfd_create(name, MFD_CLOEXEC);
  if (file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) != 0) {
    close(file);
    return -1;
  }
  return file;
}

int open_memfd_of(const ProcessId &process, int file) {
  if (!alive(process)) return -1;
  const std::string path = "/proc/" + std::to_string(process.pid) + "/fd/" + std::to_string(file);
  return open(path.c_str(), O_RDWR | O_CLOEXEC);
}

void *map_shared(int file, size_t bytes) {
  void *address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (address == MAP_FAILED) return nullptr;
  madvise(address, bytes, MADV_DONTFORK);
  return address;
}

void mark_used() {
  static const int once = [] {
    return pthread_atfork(lock_memory_for_fork, unlock_memory_after_fork, [] {
      unlock_memory_after_fork();
      in_forked_child();
    });
  }();
  (void)once;
  used = true;
}

bool process_is_usable() { return !forked_after_use; }

}  // namespace kvf
