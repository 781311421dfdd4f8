// What a test calls to steer the emulation; no such functions exist in CANN.
#pragma once

extern "C" {
// A comma list of Call:nth:action; replaces the faults set before. -1, and no change, where it cannot be read.
__attribute__((visibility("default"))) int kvf_emulator_set_faults(const char *spec);
// How often this process made a call since the start or the last reset.
__attribute__((visibility("default"))) int kvf_emulator_count(const char *call);
__attribute__((visibility("default"))) void kvf_emulator_reset_counts(void);
}
