// One line for each call, in the file KVFABRIC_EMULATED_LOG names; several processes share it.
#pragma once
#include <string>

namespace kvf {

void log_line(const std::string &text);
void log_call(const char *name, const std::string &fields, int result);

}  // namespace kvf
