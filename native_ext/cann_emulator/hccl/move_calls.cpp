// HcclSend, HcclRecv, HcclBatchSendRecv: the checks at the call, then an operation on the stream.
#include <vector>

#include "../api/hccl.h"
#include "../core/call.h"
#include "transfer.h"

namespace kvf {
namespace {

size_t width(HcclDataType type) {
  switch (type) {
    case kInt8:
    case kUint8:
    case kHifloat8:
    case kFloat8E4m3:
    case kFloat8E5m2:
    case kFloat8E8m0: return 1;
    case kInt16:
    case kUint16:
    case kFloat16:
    case kBfloat16: return 2;
    case kInt32:
    case kUint32:
    case kFloat32: return 4;
    case kInt64:
    case kUint64:
    case kFloat64: return 8;
  }
  return 0;
}

HcclResult check_item(const char *call, const Communicator &comm, const HcclItem &asked, bool may_be_self, Item *item) {
  const size_t bytes_each = width(asked.type);
  if (asked.direction != kSend && asked.direction != kReceive)
    return KVF_HCCL_FAIL(kHcclParameter, "%s: direction %u", call, asked.direction);
  if (bytes_each == 0) return KVF_HCCL_FAIL(kHcclNotSupported, "%s: data type %u", call, asked.type);
  if (asked.peer >= comm.meeting->ranks || (asked.peer == comm.rank && !may_be_self))
    return KVF_HCCL_FAIL(kHcclParameter, "%s: rank %u as the peer of rank %u", call, asked.peer, comm.rank);
  if (!asked.buffer) return KVF_HCCL_FAIL(kHcclNullPointer, "%s: null buffer", call);
  if (asked.count > SIZE_MAX / bytes_each) return KVF_HCCL_FAIL(kHcclParameter, "%s: %lu elements", call, asked.count);
  *item = {asked.direction, {}, asked.count, asked.type, asked.count * bytes_each, asked.peer};
  if (find(asked.buffer, item->bytes, &item->place) != Side::device)
    return KVF_HCCL_FAIL(kHcclParameter, "%s: %p, %zu bytes, is not inside device memory", call, asked.buffer,
                         item->bytes);
  if (item->place.region->physical != comm.device->physical)
    return KVF_HCCL_FAIL(kHcclParameter, "%s: %p is not memory of the communicator's device", call, asked.buffer);
  return kHcclOk;
}

HcclResult queue(const char *call, const HcclItem *asked, uint32_t count, bool may_be_self, HcclComm handle,
                 aclrtStream stream_handle) {
  const auto comm = find_communicator(handle);
  if (!comm)
    return KVF_HCCL_FAIL(handle ? kHcclParameter : kHcclNullPointer, "%s: %p is no communicator", call, handle);
  if (!stream_handle || !asked) return KVF_HCCL_FAIL(kHcclNullPointer, "%s: null pointer", call);
  if (count == 0) return KVF_HCCL_FAIL(kHcclParameter, "%s: no items", call);
  if (comm->aborting()) return KVF_HCCL_FAIL(kHcclSuspending, "%s: the communicator is being destroyed", call);
  std::shared_ptr<Stream> stream;
  if (need_stream(call, stream_handle, &stream)) return kHcclRuntime;
  if (stream->device != comm->device)
    return KVF_HCCL_FAIL(kHcclParameter, "%s: stream and communicator have other devices", call);
  std::vector<Item> items;
  for (uint32_t at = 0; at < count; ++at) {
    Item item;
    if (const HcclResult error = check_item(call, *comm, asked[at], may_be_self, &item)) return error;
    if (item.count) items.push_back(std::move(item));  // nothing to send is nothing to receive
  }
  if (items.empty()) return kHcclOk;
  const auto turn = std::make_shared<Communicator::Turn>(comm);
  const auto operation = std::make_shared<Operation>(comm, std::move(items));
  const auto run = [comm, turn, operation](const Running &running) {
    while (!turn->has_come() && !comm->aborting() && running.pause(1)) {
    }
    return operation->execute(running);
  };
  stream->push(run, [comm] { return comm->aborting(); });
  return kHcclOk;
}

HcclResult one(const char *name, HcclDirection direction, void *buffer, uint64_t count, HcclDataType type,
               uint32_t peer, HcclComm comm, aclrtStream stream) {
  Call call(name);
  call.with("comm", comm).with("peer", static_cast<uint64_t>(peer)).with("bytes", count * width(type));
  return call.run([&] {
    const HcclItem item{direction, buffer, count, type, peer};
    return queue(name, &item, 1, false, comm, stream);
  });
}

}  // namespace

HcclResult HcclSend(void *buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm, aclrtStream stream) {
  return one("HcclSend", kSend, buffer, count, type, peer, comm, stream);
}

HcclResult HcclRecv(void *buffer, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm, aclrtStream stream) {
  return one("HcclRecv", kReceive, buffer, count, type, peer, comm, stream);
}

HcclResult HcclBatchSendRecv(HcclItem *items, uint32_t count, HcclComm handle, aclrtStream stream) {
  uint64_t sends = 0, bytes = 0;
  for (uint32_t at = 0; items && at < count; ++at) {
    sends += items[at].direction == kSend;
    bytes += items[at].count * width(items[at].type);
  }
  const auto comm = find_communicator(handle);
  Call call("HcclBatchSendRecv");
  call.with("comm", handle).with("rank", static_cast<uint64_t>(comm ? comm->rank : 0)).with("sends", sends);
  return call.with("recvs", count - sends).with("bytes", bytes).run([&] {
    return queue("HcclBatchSendRecv", items, count, true, handle, stream);
  });
}

}  // namespace kvf
