// The frame around every exported call: is the process usable, count it, apply a fault, run it, log it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "../api/acl_types.h"

namespace kvf {

// Sets what aclGetRecentErrMsg says in this thread and gives the code back.
__attribute__((format(printf, 2, 3))) int fail(int code, const char *format, ...);
void set_message(const std::string &message);
std::string take_message();

bool process_is_usable();  // false in a child forked after the parent took a device

class Call {
 public:
  enum class Logged { always, on_error };

  explicit Call(const char *name, Logged logged = Logged::always) : name_(name), logged_(logged) {}
  Call &with(const char *key, uint64_t value);
  Call &with(const char *key, const void *value);

  // Returns what the body or a fault says. `Body` returns int or an enum of it.
  template <class Body>
  auto run(Body body) -> decltype(body()) {
    using Result = decltype(body());
    const int before = begin();
    const Result result = before ? static_cast<Result>(before) : body();
    end(static_cast<int>(result));
    return result;
  }

 private:
  int begin();
  void end(int result);

  const char *name_;
  Logged logged_;
  std::string fields_;
};

int unimplemented(const char *name);

}  // namespace kvf
