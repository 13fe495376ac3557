// A CUDA device for a CPU build of torch. Tensors of it are real tensors that say cuda:N; their memory
// is the host's, and every kernel is the CPU's. What differs between the two devices is kept: copies
// between them, waits of the host, the memory of each card, and what a captured graph may contain.

#include "kernels.h"

namespace {

std::mutex graphs_lock;
std::unordered_map<int64_t, std::unique_ptr<Graph>> graphs;
int64_t num_graphs = 0;
thread_local std::string message;

}  // namespace

extern "C" {

void sim_set_observer(Observer function) { observer.store(function); }
void sim_set_present(int value) { is_present.store(value != 0); }
void sim_set_dry(int value) { is_dry.store(value != 0); }
void sim_set_device(int index) { current = static_cast<c10::DeviceIndex>(index); }
int sim_device() { return current; }
int64_t sim_allocated(int index) { return cards.at(index).allocated.load(); }
int64_t sim_peak(int index) { return cards.at(index).peak.load(); }
void sim_reset_peak(int index) { cards.at(index).peak.store(cards.at(index).allocated.load()); }
int64_t sim_capacity(int index) { return cards.at(index).capacity.load(); }
void sim_set_capacity(int index, int64_t num_bytes) { cards.at(index).capacity.store(num_bytes); }
int64_t sim_num_kernels() { return num_kernels.load(); }
int sim_is_capturing() { return recording != nullptr; }

void sim_begin_capture() { recording = new Graph; }

// The number of the graph, with which it is replayed and dropped.
int64_t sim_end_capture() {
  const std::lock_guard<std::mutex> guard(graphs_lock);
  graphs.emplace(++num_graphs, recording);
  recording = nullptr;
  return num_graphs;
}

void sim_drop_graph(int64_t number) {
  std::unique_ptr<Graph> dropped;  // its tensors are freed without the lock
  const std::lock_guard<std::mutex> guard(graphs_lock);
  const auto found = graphs.find(number);
  if (found != graphs.end()) {
    dropped = std::move(found->second);
    graphs.erase(found);
  }
}

// NULL, or what went wrong.
const char* sim_replay(int64_t number) {
  const Graph* graph = nullptr;
  {
    const std::lock_guard<std::mutex> guard(graphs_lock);
    graph = graphs.at(number).get();
  }
  try {
    const c10::InferenceMode mode;
    replay(*graph);
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}
}
