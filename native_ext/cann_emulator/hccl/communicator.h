// A communicator: a rank's end of a meeting, and the strict order of its operations.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>

#include "../core/device.h"
#include "rendezvous.h"

namespace kvf {

class Communicator {
 public:
  Communicator(std::shared_ptr<Meeting> meeting, uint32_t rank, Device *device, size_t device_bytes,
               double exec_timeout_seconds);
  ~Communicator();

  const std::shared_ptr<Meeting> meeting;
  const uint32_t rank;
  Device *const device;
  const double exec_timeout_seconds;
  char name[128] = {};

  // An operation's place in line. It is given up when the op is done, or is dropped undone by its stream.
  class Turn {
   public:
    explicit Turn(std::shared_ptr<Communicator> owner);
    ~Turn();
    bool has_come() const;

   private:
    std::shared_ptr<Communicator> owner_;
    uint64_t number_;
  };

  bool busy() const;
  bool aborting() const { return aborting_; }
  void abort() { aborting_ = true; }

  void set_error(HcclResult error);
  HcclResult error() const;  // its own, of one of its pairs, or that a peer died

 private:
  mutable std::mutex mutex_;
  std::set<uint64_t> waiting_;  // turns not given up
  uint64_t next_turn_ = 0;
  std::atomic<bool> aborting_{false};
  std::atomic<uint32_t> error_{0};
  const size_t device_bytes_;
};

std::shared_ptr<Communicator> find_communicator(HcclComm handle);
HcclComm enter_communicator(std::shared_ptr<Communicator> communicator);
void forget_communicator(HcclComm handle);

}  // namespace kvf
