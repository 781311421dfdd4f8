// Events: a record is a number; an event is complete when the last number recorded has been reached.
#include <chrono>
#include <map>

#include "../api/acl.h"
#include "call.h"
#include "stream.h"

namespace kvf {
namespace {

using Clock = std::chrono::steady_clock;

struct Event {
  uint32_t flags = 0;
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t recorded = 0, reached = 0;  // 0 recorded: never
  uint64_t waits_asked = 0, waits_done = 0;
  Clock::time_point when;

  void reach(uint64_t number) {
    const std::lock_guard<std::mutex> lock(mutex);
    reached = std::max(reached, number);
    when = Clock::now();
    changed.notify_all();
  }
};

struct Events {
  std::mutex mutex;
  std::map<void *, std::shared_ptr<Event>> by_handle;
};

Events &events() {
  static Events &once = *new Events;
  return once;
}

int create(const char *call, aclrtEvent *handle, uint32_t flags) {
  Device *device = nullptr;
  if (const int error = need_device(call, &device)) return error;
  if (!handle) return fail(code::invalid_param, "%s: null pointer", call);
  auto event = std::make_shared<Event>();
  event->flags = flags;
  const std::lock_guard<std::mutex> lock(events().mutex);
  *handle = event.get();
  events().by_handle[*handle] = std::move(event);
  return code::ok;
}

int need_event(const char *call, aclrtEvent handle, std::shared_ptr<Event> *event) {
  const std::lock_guard<std::mutex> lock(events().mutex);
  const auto found = events().by_handle.find(handle);
  if (found == events().by_handle.end()) return fail(code::invalid_handle, "%s: %p is no event", call, handle);
  *event = found->second;
  return code::ok;
}

int wait_for(const char *call, aclrtEvent handle, int milliseconds) {
  std::shared_ptr<Event> event;
  if (milliseconds < -1) return fail(code::invalid_param, "%s: %d ms", call, milliseconds);
  if (const int error = need_event(call, handle, &event)) return error;
  std::unique_lock<std::mutex> lock(event->mutex);
  const uint64_t number = event->recorded;
  const auto done = [&] { return event->reached >= number; };
  if (milliseconds < 0) {
    event->changed.wait(lock, done);
  } else if (!event->changed.wait_for(lock, std::chrono::milliseconds(milliseconds), done)) {
    return fail(code::event_sync_timeout, "%s: not reached after %d ms", call, milliseconds);
  }
  return code::ok;
}

}  // namespace

aclError aclrtCreateEvent(aclrtEvent *event) {
  return Call("aclrtCreateEvent").run([&] { return create("aclrtCreateEvent", event, kEventTimeLine); });
}

aclError aclrtCreateEventWithFlag(aclrtEvent *event, uint32_t flags) {
  return Call("aclrtCreateEventWithFlag").run([&] { return create("aclrtCreateEventWithFlag", event, flags); });
}

aclError aclrtCreateEventExWithFlag(aclrtEvent *event, uint32_t flags) {
  return Call("aclrtCreateEventExWithFlag").run([&] { return create("aclrtCreateEventExWithFlag", event, flags); });
}

aclError aclrtDestroyEvent(aclrtEvent handle) {
  return Call("aclrtDestroyEvent").run([&] {
    const std::lock_guard<std::mutex> lock(events().mutex);
    if (events().by_handle.erase(handle)) return code::ok;
    return fail(code::invalid_handle, "aclrtDestroyEvent: %p is no event", handle);
  });
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream stream_handle) {
  return Call("aclrtRecordEvent").with("event", handle).with("stream", stream_handle).run([&] {
    std::shared_ptr<Event> event;
    std::shared_ptr<Stream> stream;
    if (const int error = need_event("aclrtRecordEvent", handle, &event)) return error;
    if (const int error = need_stream("aclrtRecordEvent", stream_handle, &stream)) return error;
    uint64_t number = 0;
    {
      const std::lock_guard<std::mutex> lock(event->mutex);
      number = ++event->recorded;
    }
    // Reached when the op goes, run or not: an aborted stream must not leave waiters behind.
    const std::shared_ptr<void> reach(nullptr, [event, number](void *) { event->reach(number); });
    stream->push([reach](const Running &) { return code::ok; });
    return code::ok;
  });
}

aclError aclrtResetEvent(aclrtEvent handle, aclrtStream stream_handle) {
  return Call("aclrtResetEvent").run([&] {
    std::shared_ptr<Event> event;
    std::shared_ptr<Stream> stream;
    if (const int error = need_event("aclrtResetEvent", handle, &event)) return error;
    return need_stream("aclrtResetEvent", stream_handle, &stream);
  });
}

aclError aclrtStreamWaitEvent(aclrtStream stream_handle, aclrtEvent handle) {
  return Call("aclrtStreamWaitEvent").with("event", handle).with("stream", stream_handle).run([&] {
    std::shared_ptr<Event> event;
    std::shared_ptr<Stream> stream;
    if (const int error = need_event("aclrtStreamWaitEvent", handle, &event)) return error;
    if (const int error = need_stream("aclrtStreamWaitEvent", stream_handle, &stream)) return error;
    uint64_t number = 0;
    {
      const std::lock_guard<std::mutex> lock(event->mutex);
      number = event->recorded;
      ++event->waits_asked;
    }
    const std::shared_ptr<void> done(nullptr, [event](void *) {
      const std::lock_guard<std::mutex> lock(event->mutex);
      ++event->waits_done;
    });
    stream->push([event, number, done](const Running &running) {
      std::unique_lock<std::mutex> lock(event->mutex);
      while (event->reached < number && !running.stopped()) event->changed.wait_for(lock, std::chrono::milliseconds(1));
      return event->reached < number ? fail(code::stream_aborted, "aborted while it waited for an event") : code::ok;
    });
    return code::ok;
  });
}

aclError aclrtQueryEventStatus(aclrtEvent handle, RecordStatus *status) {
  return Call("aclrtQueryEventStatus", Call::Logged::on_error).run([&] {
    std::shared_ptr<Event> event;
    if (!status) return fail(code::invalid_param, "aclrtQueryEventStatus: null pointer");
    if (const int error = need_event("aclrtQueryEventStatus", handle, &event)) return error;
    const std::lock_guard<std::mutex> lock(event->mutex);
    *status = event->recorded && event->reached >= event->recorded ? kRecordComplete : kRecordNotReady;
    return code::ok;
  });
}

aclError aclrtQueryEventWaitStatus(aclrtEvent handle, WaitStatus *status) {
  return Call("aclrtQueryEventWaitStatus", Call::Logged::on_error).run([&] {
    std::shared_ptr<Event> event;
    if (!status) return fail(code::invalid_param, "aclrtQueryEventWaitStatus: null pointer");
    if (const int error = need_event("aclrtQueryEventWaitStatus", handle, &event)) return error;
    const std::lock_guard<std::mutex> lock(event->mutex);
    *status = event->waits_done == event->waits_asked ? kWaitComplete : kWaitNotReady;
    return code::ok;
  });
}

aclError aclrtSynchronizeEvent(aclrtEvent event) {
  return Call("aclrtSynchronizeEvent").with("event", event).run([&] {
    return wait_for("aclrtSynchronizeEvent", event, -1);
  });
}

aclError aclrtSynchronizeEventWithTimeout(aclrtEvent event, int32_t milliseconds) {
  return Call("aclrtSynchronizeEventWithTimeout").with("event", event).run([&] {
    return wait_for("aclrtSynchronizeEventWithTimeout", event, milliseconds);
  });
}

aclError aclrtEventElapsedTime(float *milliseconds, aclrtEvent start_handle, aclrtEvent end_handle) {
  return Call("aclrtEventElapsedTime").run([&] {
    std::shared_ptr<Event> start, end;
    if (!milliseconds) return fail(code::invalid_param, "aclrtEventElapsedTime: null pointer");
    if (const int error = need_event("aclrtEventElapsedTime", start_handle, &start)) return error;
    if (const int error = need_event("aclrtEventElapsedTime", end_handle, &end)) return error;
    for (const auto &event : {start, end}) {
      const std::lock_guard<std::mutex> lock(event->mutex);
      if (!(event->flags & kEventTimeLine) || !event->recorded || event->reached < event->recorded)
        return fail(code::event_timestamp, "aclrtEventElapsedTime: an event without a time");
    }
    *milliseconds = std::chrono::duration<float, std::milli>(end->when - start->when).count();
    return code::ok;
  });
}

}  // namespace kvf
