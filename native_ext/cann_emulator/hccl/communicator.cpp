#include "communicator.h"

#include <map>

namespace kvf {
namespace {

struct Communicators {
  std::mutex mutex;
  std::map<HcclComm, std::shared_ptr<Communicator>> by_handle;
};

Communicators &communicators() {
  static Communicators &once = *new Communicators;
  return once;
}

}  // namespace

Communicator::Communicator(std::shared_ptr<Meeting> meeting, uint32_t rank, Device *device, size_t device_bytes,
                           double exec_timeout_seconds)
    : meeting(std::move(meeting)),
      rank(rank),
      device(device),
      exec_timeout_seconds(exec_timeout_seconds),
      device_bytes_(device_bytes) {}

Communicator::~Communicator() {
  meeting->page->slots[rank].left = 1;
  device->give(device_bytes_);
}

Communicator::Turn::Turn(std::shared_ptr<Communicator> owner) : owner_(std::move(owner)) {
  const std::lock_guard<std::mutex> lock(owner_->mutex_);
  number_ = owner_->next_turn_++;
  owner_->waiting_.insert(number_);
}

Communicator::Turn::~Turn() {
  const std::lock_guard<std::mutex> lock(owner_->mutex_);
  owner_->waiting_.erase(number_);
}

bool Communicator::Turn::has_come() const {
  const std::lock_guard<std::mutex> lock(owner_->mutex_);
  return *owner_->waiting_.begin() == number_;
}

bool Communicator::busy() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !waiting_.empty();
}

void Communicator::set_error(HcclResult error) {
  uint32_t none = 0;
  error_.compare_exchange_strong(none, error);
}

HcclResult Communicator::error() const {
  if (error_) return static_cast<HcclResult>(error_.load());
  for (uint32_t peer = 0; peer < meeting->ranks; ++peer) {
    for (const Ring *ring : {&meeting->ring(rank, peer), &meeting->ring(peer, rank)})
      if (ring->error) return static_cast<HcclResult>(ring->error.load());
    if (peer != rank && !meeting->page->slots[peer].left && !alive(meeting->process(peer))) return kHcclRemote;
  }
  return kHcclOk;
}

std::shared_ptr<Communicator> find_communicator(HcclComm handle) {
  const std::lock_guard<std::mutex> lock(communicators().mutex);
  const auto found = communicators().by_handle.find(handle);
  return found == communicators().by_handle.end() ? nullptr : found->second;
}

HcclComm enter_communicator(std::shared_ptr<Communicator> communicator) {
  const std::lock_guard<std::mutex> lock(communicators().mutex);
  HcclComm handle = communicator.get();
  communicators().by_handle[handle] = std::move(communicator);
  return handle;
}

void forget_communicator(HcclComm handle) {
  const std::lock_guard<std::mutex> lock(communicators().mutex);
  communicators().by_handle.erase(handle);
}

}  // namespace kvf
