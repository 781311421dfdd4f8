// How an exported C function is declared. abi_check.cpp redefines it, so that each declaration is a check.
#pragma once
#include <cstddef>
#include <cstdint>

#ifndef KVF_API
#define KVF_API(result, name, params) extern "C" __attribute__((visibility("default"))) result name params;
#endif
