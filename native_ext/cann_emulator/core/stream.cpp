#include "stream.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <chrono>
#include <thread>

#include "call.h"
#include "faults.h"

namespace kvf {
namespace {

using Clock = std::chrono::steady_clock;

int stall(const Running &running, const Stream::Question &cancelled) {
  while (running.pause(1) && !(cancelled && cancelled())) {
  }
  return fail(code::stream_aborted, "the op was stalled by a fault and then aborted");
}

}  // namespace

bool Running::stopped() const { return stream_.epoch_ != epoch_; }

bool Running::pause(double milliseconds) const {
  const auto until = Clock::now() + std::chrono::duration<double, std::milli>(milliseconds);
  while (!stopped() && Clock::now() < until) std::this_thread::sleep_for(std::chrono::microseconds(500));
  return !stopped();
}

void Stream::push(Op op, Question cancelled) {
  // The stalled op keeps what the real one held.
  if (take_stall()) op = [op, cancelled](const Running &running) { return stall(running, cancelled); };
  const std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back({std::move(op), epoch_, std::move(cancelled)});
  ++submitted_;
  if (!started_) {
    started_ = true;
    sigset_t all, before;  // the program's signals are not for this thread
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    std::thread([self = shared_from_this()] { self->work(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  changed_.notify_all();
}

void Stream::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (queue_.empty()) return;
    {
      const Queued queued = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      const int result = execute(queued);
      std::string message = take_message();
      lock.lock();
      if (result && !error_) {
        error_ = result;
        message_ = std::move(message);
      }
    }
    ++finished_;
    changed_.notify_all();
  }
}

int Stream::execute(const Queued &queued) {
  const Running running(*this, queued.epoch);
  if (running.stopped()) return fail(code::stream_aborted, "the stream was aborted before the op began");
  const Action action = next_action("stream_op");
  switch (action.kind) {
    case Action::Kind::error: return fail(action.code, "stream_op: an injected fault");
    case Action::Kind::kill: kill(getpid(), SIGKILL); break;
    case Action::Kind::stall: return stall(running, queued.cancelled);
    case Action::Kind::delay:
      if (!running.pause(action.seconds * 1000)) return fail(code::stream_aborted, "aborted during an injected delay");
      break;
    default: break;
  }
  return queued.op(running);
}

int Stream::wait(int milliseconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t mine = submitted_;
  const auto done = [&] { return finished_ >= mine; };
  if (milliseconds < 0) {
    changed_.wait(lock, done);
  } else if (!changed_.wait_for(lock, std::chrono::milliseconds(milliseconds), done)) {
    return fail(code::stream_sync_timeout, "stream %d was not done after %d ms", id, milliseconds);
  }
  const int error = error_;
  error_ = 0;
  if (error) set_message(message_);
  return error;
}

int Stream::wait_quiet() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t mine = submitted_;
  changed_.wait(lock, [&] { return finished_ >= mine; });
  return error_;
}

bool Stream::idle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return finished_ == submitted_;
}

void Stream::abort() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++epoch_;
}

void Stream::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  changed_.notify_all();
}

}  // namespace kvf
