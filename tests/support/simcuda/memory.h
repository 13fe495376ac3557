// What a card has: memory, an observer of copies and waits, and what torch asks of a device.

#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <sys/mman.h>

#include <array>
#include <atomic>
#include <mutex>
#include <unordered_set>

namespace {

using at::IValue;
using at::Tensor;
using Stack = torch::jit::Stack;

constexpr int kNumDevices = 2;
constexpr int64_t kNoLimit = int64_t{1} << 62;

// ---- what Python sees

// Called at each copy between devices and each wait. A result other than 0 refuses it.
using Observer = int (*)(const char* kind, const char* op, int64_t num_bytes, int is_capturing);

struct Card {
  std::atomic<int64_t> allocated{0}, peak{0}, capacity{kNoLimit};
};

std::array<Card, kNumDevices> cards;
std::atomic<Observer> observer{nullptr};
std::atomic<bool> is_present{false};  // whether torch's own C++ code sees a CUDA device
std::atomic<bool> is_dry{false};      // shapes only: no memory is used, and nothing is computed
std::atomic<int64_t> num_kernels{0};

struct Graph;
thread_local Graph* recording = nullptr;
thread_local c10::DeviceIndex current = 0;

void observe(const char* kind, const std::string& op, int64_t num_bytes) {
  Observer observed = observer.load();
  if (observed != nullptr && observed(kind, op.c_str(), num_bytes, recording != nullptr) != 0) {
    TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing: ", op);
  }
}

// ---- memory

struct Block {
  int64_t num_bytes;
  c10::DeviceIndex device;
  c10::Storage kept;  // memory of the host that a kernel made, if any
  void* mapped;       // addresses without memory, of a dry run
};

void take(c10::DeviceIndex device, int64_t num_bytes) {
  Card& card = cards.at(device);
  const int64_t total = card.allocated.fetch_add(num_bytes) + num_bytes;
  if (total > card.capacity.load()) {
    card.allocated.fetch_sub(num_bytes);
    const double mib = 1 << 20;
    TORCH_CHECK_WITH(
        OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", num_bytes / mib,
        " MiB. GPU ", int(device), " has a total capacity of ", card.capacity.load() / mib,
        " MiB of which ", (card.capacity.load() - total + num_bytes) / mib, " MiB is free.");
  }
  int64_t peak = card.peak.load();
  while (total > peak && !card.peak.compare_exchange_weak(peak, total)) {
  }
}

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  cards.at(block->device).allocated.fetch_sub(block->num_bytes);
  if (block->mapped != nullptr) {
    munmap(block->mapped, block->num_bytes);
  }
  delete block;
}

c10::Device device_of(c10::DeviceIndex index) { return {c10::DeviceType::CUDA, index}; }

// Memory of the host, from now on of a card.
c10::DataPtr adopted(const c10::Storage& kept, c10::DeviceIndex index) {
  const auto num_bytes = static_cast<int64_t>(kept.nbytes());
  take(index, num_bytes);
  return {kept.mutable_data(), new Block{num_bytes, index, kept, nullptr}, release, device_of(index)};
}

c10::DataPtr addresses(int64_t num_bytes, c10::DeviceIndex index) {
  take(index, num_bytes);
  void* mapped = nullptr;
  if (num_bytes != 0) {
    mapped = mmap(nullptr, num_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(mapped != MAP_FAILED, "no addresses for ", num_bytes, " bytes");
  }
  return {mapped, new Block{num_bytes, index, c10::Storage(), mapped}, release, device_of(index)};
}

struct CardAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t num_bytes) override {
    if (is_dry.load()) {
      return addresses(static_cast<int64_t>(num_bytes), current);
    }
    c10::Storage kept(
        c10::Storage::use_byte_size_t(), num_bytes, c10::GetCPUAllocator()->allocate(num_bytes),
        nullptr, false);
    return adopted(kept, current);
  }
  void copy_data(void* to, const void* from, std::size_t num_bytes) const override {
    default_copy_data(to, from, num_bytes);
  }
};

CardAllocator card_allocator;

std::mutex pinned_lock;
std::unordered_set<const void*> pinned;

void unpin(void* context) {
  auto* memory = static_cast<c10::DataPtr*>(context);
  {
    std::lock_guard<std::mutex> guard(pinned_lock);
    pinned.erase(memory->get());
  }
  delete memory;
}

bool is_pinned(const void* pointer) {
  std::lock_guard<std::mutex> guard(pinned_lock);
  return pinned.count(pointer) != 0;
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t num_bytes) override {
    auto* memory = new c10::DataPtr(c10::GetCPUAllocator()->allocate(num_bytes));
    std::lock_guard<std::mutex> guard(pinned_lock);
    pinned.insert(memory->get());
    return {memory->get(), memory, unpin, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t num_bytes) const override {
    default_copy_data(to, from, num_bytes);
  }
};

PinnedAllocator pinned_allocator;

// ---- what torch asks of a device

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return device_of(current); }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(
        device.index() >= 0 && device.index() < kNumDevices, "CUDA error: invalid device ordinal");
    current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getNewStream(c10::Device device, int /*priority*/) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return kNumDevices; }
};

}  // namespace

namespace at {

struct SimulatedHooks final : CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return is_present.load(); }
  bool isBuilt() const override { return is_present.load(); }
  bool isAvailable() const override { return is_present.load(); }
  bool hasPrimaryContext(DeviceIndex /*device*/) const override { return is_present.load(); }
  DeviceIndex deviceCount() const override { return kNumDevices; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex getCurrentDevice() const override { return current; }
  int getNumGPUs() const override { return is_present.load() ? kNumDevices : 0; }
  bool isPinnedPtr(const void* data) const override { return is_pinned(data); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  Allocator* getCUDADeviceAllocator() const override { return &card_allocator; }
};

}  // namespace at

namespace {

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// torch has made its hooks when it was imported. These have no members either, so they fit in place.
static_assert(sizeof(at::SimulatedHooks) == sizeof(at::CUDAHooksInterface));

const bool is_set_up = [] {
  c10::SetAllocator(c10::DeviceType::CUDA, &card_allocator);
  new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) at::SimulatedHooks();
  return true;
}();

}  // namespace
