// Moving items: each ordered pair has a lane; the lanes of an operation go forward together, in pieces through rings.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "../core/memory.h"
#include "../core/stream.h"
#include "communicator.h"

namespace kvf {

struct Item {
  HcclDirection direction;
  Place place;
  uint64_t count;
  HcclDataType type;
  size_t bytes;
  uint32_t peer;
};

class Operation {
 public:
  Operation(std::shared_ptr<Communicator> comm, std::vector<Item> items);

  int execute(const Running &running);  // on the stream's thread; an ACL error number

 private:
  struct Lane {  // what goes one way between this rank and a peer
    HcclDirection direction;
    uint32_t peer;
    std::deque<Item> items;
    size_t moved = 0;        // of the first item
    bool announced = false;  // its header has passed
    uint64_t last_end = 0;   // where in the ring the last byte sent lies
    bool sent = false;
  };

  bool step(Lane &lane);
  bool step_send(Lane &lane, Ring &ring);
  bool step_receive(Lane &lane, Ring &ring);
  bool finished(const Lane &lane) const;
  int failure(const Running &running, bool look_at_peers);
  int give_up(HcclResult error, int code, const char *why, uint32_t peer);

  std::shared_ptr<Communicator> comm_;
  std::vector<Lane> lanes_;
};

}  // namespace kvf
