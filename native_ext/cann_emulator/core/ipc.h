// Device memory shared between processes. The exporter keeps a page, itself a memfd, that says what the key stands for
// and who holds it.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "process.h"

namespace kvf {

constexpr int kMostImporters = 256;
constexpr int kMostPids = 256;

// Who holds the key; one word, so that no half-written entry is ever taken for a dead process. 0: free. Claimed by the
// importer itself, released by it or, when it died, by the next one that looks.
using Importer = std::atomic<uint64_t>;

struct ExportPage {
  std::atomic<uint64_t> serial;  // 0 once closed
  int memory_file;               // number in the exporter
  int physical;
  uint64_t offset, size, page;
  uint64_t flags;
  std::atomic<int> allowed_count;
  std::atomic<int> allowed[kMostPids];
  Importer importers[kMostImporters];
};

struct Export {
  int file = -1;
  ExportPage *page = nullptr;
  char key[65] = {};

  ~Export();
  // Ends the key, unless a live process holds it. An import at the same time either is seen here or sees the end.
  bool retract();
};

void forget_export(
    const std::shared_ptr<Export> &exported);  // its memory is freed: the key stands for nothing from now on

}  // namespace kvf
