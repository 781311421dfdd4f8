// The calls about streams.
#include <chrono>
#include <map>
#include <vector>

#include "../api/acl.h"
#include "call.h"
#include "stream.h"

namespace kvf {
namespace {

struct Streams {
  std::mutex mutex;
  std::map<void *, std::shared_ptr<Stream>> by_handle;
  std::map<Device *, std::shared_ptr<Stream>> own;  // what a null handle means
  int next_id = 0;
};

Streams &streams() {
  static Streams &once = *new Streams;
  return once;
}

int create(const char *call, aclrtStream *handle) {
  Device *device = nullptr;
  if (const int error = need_device(call, &device)) return error;
  if (!handle) return fail(code::invalid_param, "%s: null pointer", call);
  const std::lock_guard<std::mutex> lock(streams().mutex);
  auto stream = std::make_shared<Stream>(streams().next_id++, device);
  *handle = stream.get();
  streams().by_handle[*handle] = std::move(stream);
  return code::ok;
}

int destroy(const char *call, aclrtStream handle, bool by_force) {
  std::shared_ptr<Stream> stream;
  if (!handle) return fail(code::invalid_handle, "%s: null stream", call);
  if (const int error = need_stream(call, handle, &stream)) return error;
  if (by_force) {
    stream->abort();
  } else {
    stream->wait_quiet();
  }
  stream->close();
  const std::lock_guard<std::mutex> lock(streams().mutex);
  streams().by_handle.erase(handle);
  return code::ok;
}

int wait_for(const char *call, aclrtStream handle, int milliseconds) {
  std::shared_ptr<Stream> stream;
  if (milliseconds < -1) return fail(code::invalid_param, "%s: %d ms", call, milliseconds);
  if (const int error = need_stream(call, handle, &stream)) return error;
  return stream->wait(milliseconds);
}

int wait_for_device(const char *call, int milliseconds) {
  Device *device = nullptr;
  if (milliseconds < -1) return fail(code::invalid_param, "%s: %d ms", call, milliseconds);
  if (const int error = need_device(call, &device)) return error;
  std::vector<std::shared_ptr<Stream>> mine;
  {
    const std::lock_guard<std::mutex> lock(streams().mutex);
    for (auto &entry : streams().by_handle)
      if (entry.second->device == device) mine.push_back(entry.second);
    if (streams().own.count(device)) mine.push_back(streams().own[device]);
  }
  const auto start = std::chrono::steady_clock::now();
  int first = code::ok;
  for (auto &stream : mine) {
    const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
    const int left = milliseconds < 0 ? -1 : std::max(0, milliseconds - static_cast<int>(spent.count()));
    const int error = stream->wait(left);
    if (error && !first) first = error;
  }
  return first;
}

}  // namespace

int need_stream(const char *call, void *handle, std::shared_ptr<Stream> *stream) {
  Device *device = nullptr;
  if (const int error = need_device(call, &device)) return error;
  const std::lock_guard<std::mutex> lock(streams().mutex);
  if (!handle) {
    auto &own = streams().own[device];
    if (!own) own = std::make_shared<Stream>(streams().next_id++, device);
    *stream = own;
    return code::ok;
  }
  const auto found = streams().by_handle.find(handle);
  if (found == streams().by_handle.end()) return fail(code::invalid_handle, "%s: %p is no stream", call, handle);
  if (found->second->device != device)
    return fail(code::stream_of_other_device, "%s: the stream belongs to device %d, the current one is %d", call,
                found->second->device->index, device->index);
  *stream = found->second;
  return code::ok;
}

aclError aclrtCreateStream(aclrtStream *stream) {
  return Call("aclrtCreateStream").run([&] { return create("aclrtCreateStream", stream); });
}

aclError aclrtCreateStreamWithConfig(aclrtStream *stream, uint32_t, uint32_t) {
  return Call("aclrtCreateStreamWithConfig").run([&] { return create("aclrtCreateStreamWithConfig", stream); });
}

aclError aclrtDestroyStream(aclrtStream stream) {
  return Call("aclrtDestroyStream").run([&] { return destroy("aclrtDestroyStream", stream, false); });
}

aclError aclrtDestroyStreamForce(aclrtStream stream) {
  return Call("aclrtDestroyStreamForce").run([&] { return destroy("aclrtDestroyStreamForce", stream, true); });
}

aclError aclrtSynchronizeStream(aclrtStream stream) {
  return Call("aclrtSynchronizeStream").with("stream", stream).run([&] {
    return wait_for("aclrtSynchronizeStream", stream, -1);
  });
}

aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t milliseconds) {
  return Call("aclrtSynchronizeStreamWithTimeout").with("stream", stream).run([&] {
    return wait_for("aclrtSynchronizeStreamWithTimeout", stream, milliseconds);
  });
}

aclError aclrtSynchronizeDevice() {
  return Call("aclrtSynchronizeDevice").run([&] { return wait_for_device("aclrtSynchronizeDevice", -1); });
}

aclError aclrtSynchronizeDeviceWithTimeout(int32_t milliseconds) {
  return Call("aclrtSynchronizeDeviceWithTimeout").run([&] {
    return wait_for_device("aclrtSynchronizeDeviceWithTimeout", milliseconds);
  });
}

aclError aclrtStreamQuery(aclrtStream handle, StreamStatus *status) {
  return Call("aclrtStreamQuery", Call::Logged::on_error).run([&] {
    std::shared_ptr<Stream> stream;
    if (!status) return fail(code::invalid_param, "aclrtStreamQuery: null pointer");
    if (const int error = need_stream("aclrtStreamQuery", handle, &stream)) return error;
    *status = stream->idle() ? kStreamComplete : kStreamNotReady;
    return code::ok;
  });
}

aclError aclrtStreamAbort(aclrtStream handle) {
  return Call("aclrtStreamAbort").with("stream", handle).run([&] {
    std::shared_ptr<Stream> stream;
    if (const int error = need_stream("aclrtStreamAbort", handle, &stream)) return error;
    stream->abort();
    return code::ok;
  });
}

aclError aclrtStreamGetId(aclrtStream handle, int32_t *id) {
  return Call("aclrtStreamGetId", Call::Logged::on_error).run([&] {
    std::shared_ptr<Stream> stream;
    if (!id) return fail(code::invalid_param, "aclrtStreamGetId: null pointer");
    if (const int error = need_stream("aclrtStreamGetId", handle, &stream)) return error;
    *id = stream->id;
    return code::ok;
  });
}

}  // namespace kvf
