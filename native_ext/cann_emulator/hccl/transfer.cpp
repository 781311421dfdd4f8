#include "transfer.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "../core/call.h"

namespace kvf {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPiece = 256u << 10;  // so that the lanes of an operation take turns

struct Header {
  uint64_t count;
  uint64_t type;
};

// Ring bytes from a position on, which may run over the end.
void put(const Meeting &meeting, Ring &ring, uint64_t at, const unsigned char *from, size_t count) {
  const size_t start = at % meeting.ring_bytes;
  const size_t first = std::min(count, meeting.ring_bytes - start);
  std::memcpy(ring.bytes + start, from, first);
  std::memcpy(ring.bytes, from + first, count - first);
}

void get(const Meeting &meeting, const Ring &ring, uint64_t at, unsigned char *to, size_t count) {
  const size_t start = at % meeting.ring_bytes;
  const size_t first = std::min(count, meeting.ring_bytes - start);
  std::memcpy(to, ring.bytes + start, first);
  std::memcpy(to + first, ring.bytes, count - first);
}

}  // namespace

Operation::Operation(std::shared_ptr<Communicator> comm, std::vector<Item> items) : comm_(std::move(comm)) {
  for (Item &item : items) {
    const auto lane = std::find_if(lanes_.begin(), lanes_.end(), [&](const Lane &known) {
      return known.direction == item.direction && known.peer == item.peer;
    });
    Lane &mine = lane == lanes_.end() ? lanes_.emplace_back(Lane{item.direction, item.peer, {}}) : *lane;
    mine.items.push_back(std::move(item));
  }
}

bool Operation::step_send(Lane &lane, Ring &ring) {
  const Meeting &meeting = *comm_->meeting;
  const Item &item = lane.items.front();
  const uint64_t written = ring.written;
  const size_t room = meeting.ring_bytes - static_cast<size_t>(written - ring.read);
  size_t count = 0;
  if (!lane.announced) {
    if (room < sizeof(Header)) return false;
    const Header header{item.count, item.type};
    put(meeting, ring, written, reinterpret_cast<const unsigned char *>(&header), count = sizeof header);
    lane.announced = true;
  } else {
    count = std::min({room, kPiece, item.bytes - lane.moved});
    if (count == 0) return false;
    put(meeting, ring, written, item.place.bytes() + lane.moved, count);
    lane.moved += count;
  }
  ring.written = lane.last_end = written + count;
  lane.sent = true;
  return true;
}

bool Operation::step_receive(Lane &lane, Ring &ring) {
  const Meeting &meeting = *comm_->meeting;
  const Item &item = lane.items.front();
  const uint64_t read = ring.read;
  const auto there = static_cast<size_t>(ring.written - read);
  size_t count = 0;
  if (!lane.announced) {
    if (there < sizeof(Header)) return false;
    Header header;
    get(meeting, ring, read, reinterpret_cast<unsigned char *>(&header), count = sizeof header);
    if (header.count != item.count || header.type != item.type) {
      fail(code::internal, "rank %u sent %lu of type %lu, rank %u receives %lu of type %u", lane.peer,
           static_cast<unsigned long>(header.count), static_cast<unsigned long>(header.type), comm_->rank,
           static_cast<unsigned long>(item.count), item.type);
      ring.error = kHcclParameter;  // both sides look here
      return true;
    }
    lane.announced = true;
  } else {
    count = std::min({there, kPiece, item.bytes - lane.moved});
    if (count == 0) return false;
    get(meeting, ring, read, item.place.bytes() + lane.moved, count);
    lane.moved += count;
  }
  ring.read = read + count;
  return true;
}

bool Operation::step(Lane &lane) {
  if (lane.items.empty()) return false;
  const bool sends = lane.direction == kSend;
  Ring &ring = sends ? comm_->meeting->ring(comm_->rank, lane.peer) : comm_->meeting->ring(lane.peer, comm_->rank);
  if (ring.error) return false;
  const bool moved = sends ? step_send(lane, ring) : step_receive(lane, ring);
  if (!moved) return false;
  if (lane.announced && lane.moved == lane.items.front().bytes) {
    lane.items.pop_front();
    lane.moved = 0;
    lane.announced = false;
  }
  comm_->meeting->ring_doorbell(lane.peer);
  return true;
}

// A send is over when the peer has read its last byte: bytes in a ring are not yet a transfer.
bool Operation::finished(const Lane &lane) const {
  if (!lane.items.empty()) return false;
  return lane.direction == kReceive || comm_->meeting->ring(comm_->rank, lane.peer).read >= lane.last_end;
}

int Operation::give_up(HcclResult error, int code, const char *why, uint32_t peer) {
  comm_->set_error(error);
  return fail(code, "HCCL rank %u with rank %u: %s", comm_->rank, peer, why);
}

int Operation::failure(const Running &running, bool look_at_peers) {
  const Meeting &meeting = *comm_->meeting;
  if (comm_->aborting()) return fail(code::stream_aborted, "the communicator was destroyed during the operation");
  if (running.stopped()) return fail(code::stream_aborted, "the stream was aborted during the operation");
  for (const Lane &lane : lanes_) {
    if (finished(lane)) continue;
    const Ring &ring =
        lane.direction == kSend ? meeting.ring(comm_->rank, lane.peer) : meeting.ring(lane.peer, comm_->rank);
    if (ring.error)
      return give_up(static_cast<HcclResult>(ring.error.load()), code::internal,
                     "count or type of a send and its receive differ", lane.peer);
    for (const Item &item : lane.items)
      if (!item.place.region->live)
        return give_up(kHcclMemory, code::device_memory, "a buffer was freed meanwhile", lane.peer);
    if (look_at_peers && lane.peer != comm_->rank && !alive(meeting.process(lane.peer)) && !finished(lane))
      return give_up(kHcclRemote, code::remote_suspect, "the peer's process died", lane.peer);
  }
  return code::ok;
}

int Operation::execute(const Running &running) {
  const Meeting &meeting = *comm_->meeting;
  const auto start = Clock::now();
  auto looked = start;
  while (true) {
    const uint32_t seen = meeting.page->slots[comm_->rank].doorbell;
    bool moved = false;
    for (Lane &lane : lanes_) moved |= step(lane);
    if (std::all_of(lanes_.begin(), lanes_.end(), [this](const Lane &lane) { return finished(lane); })) return code::ok;
    const auto now = Clock::now();
    // A peer's death is looked for only where nothing moves: what it wrote before may still be read.
    const bool look = !moved && now - looked > std::chrono::milliseconds(20);
    if (look) looked = now;
    if (const int error = failure(running, look)) return error;
    const double limit = comm_->exec_timeout_seconds;  // 0: none
    if (limit > 0 && std::chrono::duration<double>(now - start).count() > limit)
      return give_up(kHcclTimeout, code::hccl_task_timeout, "the operation took longer than the execution timeout",
                     lanes_[0].peer);
    if (!moved) meeting.wait_doorbell(comm_->rank, seen);
  }
}

}  // namespace kvf
