// Faults by call and number: the same program meets them at the same place each time.
#pragma once
#include <atomic>

namespace kvf {

struct Action {
  enum class Kind { none, error, delay, kill, stall } kind = Kind::none;
  int code = 0;
  double seconds = 0;
};

Action next_action(const char *call);  // counts the call
void count_call(const char *call);
void sleep_seconds(double seconds);

// On the caller's thread: sleeps, kills, or gives the error back; a stall is kept for the op that the call will queue.
int apply_faults(const char *call);
bool take_stall();
void forget_stall();

}  // namespace kvf
