// A stream: ops in order, done by a thread of its own.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "device.h"

namespace kvf {

class Stream;

// What a running op sees of its stream.
class Running {
 public:
  Running(const Stream &stream, uint64_t epoch) : stream_(stream), epoch_(epoch) {}
  bool stopped() const;                   // aborted, or the stream destroyed by force
  bool pause(double milliseconds) const;  // sleeps in slices; false once stopped

 private:
  const Stream &stream_;
  uint64_t epoch_;
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  using Op = std::function<int(const Running &)>;
  using Question = std::function<bool()>;

  Stream(int id, Device *device) : id(id), device(device) {}

  // `cancelled` ends an op that a fault stalls, beside an abort of the stream.
  void push(Op op, Question cancelled = nullptr);
  int wait(int milliseconds);  // negative: for ever; gives back, once, the first error of an op
  int wait_quiet();            // the same without taking the error
  bool idle();
  void abort();  // the running op ends early, the queued ones never start
  void close();  // no more ops; the thread ends after the last one

  const int id;
  Device *const device;

 private:
  friend class Running;
  struct Queued {
    Op op;
    uint64_t epoch;
    Question cancelled;
  };

  void work();
  int execute(const Queued &queued);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Queued> queue_;
  std::atomic<uint64_t> epoch_{0};  // an abort starts a new one
  uint64_t submitted_ = 0, finished_ = 0;
  bool started_ = false, closed_ = false;
  int error_ = 0;
  std::string message_;
};

// The stream behind a handle; null is the device's own stream.
int need_stream(const char *call, void *handle, std::shared_ptr<Stream> *stream);

}  // namespace kvf
