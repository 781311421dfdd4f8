#include "faults.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "../api/controls.h"
#include "call.h"
#include "settings.h"

namespace kvf {
namespace {

struct Fault {
  std::string call;
  long nth;  // 0: every one
  Action action;
};

std::optional<Action> parse_action(const std::string &text) {
  Action action;
  const auto equals = text.find('=');
  const std::string word = text.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : text.substr(equals + 1);
  char *end = nullptr;
  if (word == "error" && !value.empty()) {
    action.kind = Action::Kind::error;
    action.code = static_cast<int>(std::strtol(value.c_str(), &end, 10));
    if (*end || action.code == 0) return std::nullopt;
  } else if (word == "delay" && !value.empty()) {
    action.kind = Action::Kind::delay;
    action.seconds = std::strtod(value.c_str(), &end);
    if (*end || action.seconds < 0) return std::nullopt;
  } else if (text == "kill") {
    action.kind = Action::Kind::kill;
  } else if (text == "stall") {
    action.kind = Action::Kind::stall;
  } else {
    return std::nullopt;
  }
  return action;
}

std::optional<std::vector<Fault>> parse(const std::string &spec) {
  std::vector<Fault> faults;
  std::istringstream entries(spec);
  for (std::string entry; std::getline(entries, entry, ',');) {
    const auto first = entry.find(':');
    const auto second = entry.find(':', first == std::string::npos ? first : first + 1);
    if (second == std::string::npos || first == 0) return std::nullopt;
    const std::string nth = entry.substr(first + 1, second - first - 1);
    char *end = nullptr;
    const long number = nth == "*" ? 0 : std::strtol(nth.c_str(), &end, 10);
    const auto action = parse_action(entry.substr(second + 1));
    if (!action || (nth != "*" && (*end || number < 1))) return std::nullopt;
    faults.push_back({entry.substr(0, first), number, *action});
  }
  return faults;
}

struct Faults {
  std::mutex mutex;
  std::vector<Fault> set;
  std::map<std::string, long> since_set;  // counted from the last setting, as nth is
  std::map<std::string, long> counts;     // what kvf_emulator_count tells
};

Faults &faults() {
  static Faults &once = *[] {
    auto *made = new Faults;
    const auto parsed = parse(settings().faults);
    if (!parsed) {
      // A test that misspells a fault must not pass for want of one.
      static const char complaint[] = "KVFABRIC_EMULATED_FAULTS cannot be read\n";
      if (write(2, complaint, sizeof complaint - 1) < 0) std::abort();
      std::abort();
    }
    made->set = *parsed;
    return made;
  }();
  return once;
}

thread_local bool stall_pending = false;

}  // namespace

Action next_action(const char *call) {
  Faults &all = faults();
  const std::lock_guard<std::mutex> lock(all.mutex);
  ++all.counts[call];
  const long nth = ++all.since_set[call];
  for (const Fault &fault : all.set) {
    if (fault.call == call && (fault.nth == 0 || fault.nth == nth)) return fault.action;
  }
  return {};
}

void count_call(const char *call) { next_action(call); }

void sleep_seconds(double seconds) {
  timespec left{static_cast<time_t>(seconds), static_cast<long>((seconds - static_cast<time_t>(seconds)) * 1e9)};
  while (nanosleep(&left, &left) != 0) {
  }
}

int apply_faults(const char *call) {
  const Action action = next_action(call);
  stall_pending = action.kind == Action::Kind::stall;
  switch (action.kind) {
    case Action::Kind::error: return fail(action.code, "%s: an injected fault", call);
    case Action::Kind::delay: sleep_seconds(action.seconds); return 0;
    case Action::Kind::kill: kill(getpid(), SIGKILL); return 0;
    default: return 0;
  }
}

bool take_stall() {
  const bool taken = stall_pending;
  stall_pending = false;
  return taken;
}

void forget_stall() { stall_pending = false; }

}  // namespace kvf

int kvf_emulator_set_faults(const char *spec) {
  const auto parsed = kvf::parse(spec ? spec : "");
  if (!parsed) return -1;
  kvf::Faults &all = kvf::faults();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.set = *parsed;
  all.since_set.clear();
  return 0;
}

int kvf_emulator_count(const char *call) {
  kvf::Faults &all = kvf::faults();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.counts.find(call);
  return found == all.counts.end() ? 0 : static_cast<int>(found->second);
}

void kvf_emulator_reset_counts(void) {
  kvf::Faults &all = kvf::faults();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.counts.clear();
}
