// Kernels: the CPU's, on the memory of a card. What was captured runs again on the same memory.

#pragma once

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <unordered_map>

#include "memory.h"

namespace {

Tensor tensor_on(
    const c10::Storage& storage, c10::DispatchKey key, const Tensor& like) {
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(
      like.sizes(), like.strides(), like.storage_offset());
  return made;
}

// A view may be used for training if its base may, whatever the mode is in which it is made.
Tensor view_of(const Tensor& base, const Tensor& like) {
  c10::TensorImpl* impl = base.unsafeGetTensorImpl();
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(base.storage()), impl->key_set(), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(
      like.sizes(), like.strides(), like.storage_offset());
  return made;
}

void release_storage(void* context) { delete static_cast<c10::Storage*>(context); }

// One call of a kernel: its tensors seen as tensors of the host, which share the memory.
class Call {
 public:
  explicit Call(const std::string& op) : op_(op) {}

  IValue in(const IValue& value) {
    if (value.isTensor()) {
      return in(value.toTensor());
    }
    if (value.isDevice()) {
      wanted_ = value.toDevice();
      return at::Device(host());
    }
    if (value.isTensorList()) {
      c10::List<Tensor> made;
      for (const Tensor& each : value.toTensorVector()) {
        made.push_back(in(each));
      }
      return made;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> made;
      for (const std::optional<Tensor>& each : value.toOptionalTensorList().vec()) {
        made.push_back(each.has_value() ? std::optional<Tensor>(in(*each)) : std::nullopt);
      }
      return made;
    }
    return value;
  }

  IValue out(const IValue& value) {
    if (value.isTensor()) {
      return out(value.toTensor());
    }
    if (value.isTensorList()) {
      c10::List<Tensor> made;
      for (const Tensor& each : value.toTensorVector()) {
        made.push_back(out(each));
      }
      return made;
    }
    return value;
  }

  // A kernel may have resized what it writes to.
  void write_back() {
    for (auto& [seen, original] : originals_) {
      c10::TensorImpl* impl = original.unsafeGetTensorImpl();
      if (seen->storage().nbytes() != original.storage().nbytes()) {
        const c10::Storage& grown = seen->storage();
        const auto index = original.device().index();
        original.storage().set_data_ptr_noswap(
            is_dry.load() ? addresses(grown.nbytes(), index) : adopted(grown, index));
        original.storage().unsafeGetStorageImpl()->set_nbytes(grown.nbytes());
      }
      if (seen->sizes() != impl->sizes() || seen->strides() != impl->strides()) {
        impl->set_sizes_and_strides(seen->sizes(), seen->strides(), seen->storage_offset());
      }
    }
  }

  bool is_of_host(const Tensor& tensor) const {
    return originals_.count(tensor.unsafeGetTensorImpl()) == 0 &&
        bases_.count(tensor.storage().unsafeGetStorageImpl()) == 0;
  }

 private:
  static c10::DeviceType host() {
    return is_dry.load() ? c10::DeviceType::Meta : c10::DeviceType::CPU;
  }

  Tensor in(const Tensor& tensor) {
    if (!tensor.defined()) {
      return tensor;
    }
    if (!tensor.is_cuda()) {
      TORCH_CHECK(
          tensor.dim() == 0 || !device_.has_value(),
          "Expected all tensors to be on the same device, but found at least two devices, ",
          device_.value_or(tensor.device()), " and ", tensor.device(), " in ", op_);
      num_on_host_ += tensor.dim() != 0;
      return is_dry.load() ? tensor.to(at::kMeta) : tensor;
    }
    TORCH_CHECK(
        num_on_host_ == 0 && device_.value_or(tensor.device()) == tensor.device(),
        "Expected all tensors to be on the same device, but found at least two devices, ",
        num_on_host_ != 0 ? c10::Device(at::kCPU) : *device_, " and ", tensor.device(), " in ", op_);
    device_ = tensor.device();
    const c10::Storage& storage = tensor.storage();
    c10::Storage& shared = shared_[storage.unsafeGetStorageImpl()];
    if (!shared) {
      shared = c10::Storage(
          c10::Storage::use_byte_size_t(), storage.nbytes(),
          c10::DataPtr(
              is_dry.load() ? nullptr : storage.mutable_data(), new c10::Storage(storage),
              release_storage, host()),
          c10::GetAllocator(host()), true);
      bases_.emplace(shared.unsafeGetStorageImpl(), tensor);
    }
    const auto key = is_dry.load() ? c10::DispatchKey::Meta : c10::DispatchKey::CPU;
    Tensor made = tensor_on(shared, key, tensor);
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
      made.unsafeGetTensorImpl()->set_wrapped_number(true);
    }
    originals_.emplace(made.unsafeGetTensorImpl(), tensor);
    made_.push_back(made);
    return made;
  }

  Tensor out(const Tensor& tensor) {
    if (!tensor.defined()) {
      return tensor;
    }
    const auto same = originals_.find(tensor.unsafeGetTensorImpl());
    if (same != originals_.end()) {
      return same->second;
    }
    c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
    const auto base = bases_.find(tensor.storage().unsafeGetStorageImpl());
    if (base != bases_.end()) {
      return view_of(base->second, tensor);
    }
    const c10::Device wanted = wanted_.value_or(device_.value_or(device_of(current)));
    const auto index = wanted.has_index() ? wanted.index() : current;
    c10::Storage& made = outputs_[impl->storage().unsafeGetStorageImpl()];
    if (!made) {
      const auto num_bytes = impl->storage().nbytes();
      made = c10::Storage(
          c10::Storage::use_byte_size_t(), num_bytes,
          is_dry.load() ? addresses(num_bytes, index) : adopted(impl->storage(), index),
          &card_allocator, true);
    }
    return tensor_on(made, c10::DispatchKey::CUDA, tensor);
  }

  std::string op_;
  std::optional<c10::Device> device_, wanted_;
  int num_on_host_ = 0;
  std::vector<Tensor> made_;  // so that no address is used twice
  std::unordered_map<c10::StorageImpl*, c10::Storage> shared_, outputs_;
  std::unordered_map<c10::StorageImpl*, Tensor> bases_;
  std::unordered_map<c10::TensorImpl*, Tensor> originals_;
};

// ---- graphs: what was captured runs again on the same memory

struct Recorded {
  c10::OperatorHandle op;
  Stack inputs;
  std::vector<Tensor> outputs;  // where the results were, of those that the kernel made
};

struct Graph {
  std::vector<Recorded> kernels;
};

std::vector<Tensor> new_tensors(const Call& call, const Stack& results) {
  std::vector<Tensor> found;
  for (const IValue& each : results) {
    if (each.isTensor()) {
      found.push_back(each.toTensor());
    } else if (each.isTensorList()) {
      for (const Tensor& tensor : each.toTensorVector()) {
        found.push_back(tensor);
      }
    }
  }
  for (Tensor& tensor : found) {
    if (tensor.defined() && !call.is_of_host(tensor)) {
      tensor = Tensor();
    }
  }
  return found;
}

// CUDA has kernels for these types, and the CPU has none.
void convert(const std::string& op, Stack& stack, size_t first) {
  if (op == "aten::histc" && !stack[first].toTensor().is_floating_point()) {
    stack[first] = stack[first].toTensor().to(at::kFloat);
  }
}

void replay(const Graph& graph) {
  for (const Recorded& kernel : graph.kernels) {
    Stack stack = kernel.inputs;
    convert(kernel.op.schema().name(), stack, 0);
    kernel.op.callBoxed(stack);
    std::vector<Tensor> made;
    for (const IValue& each : stack) {
      if (each.isTensor()) {
        made.push_back(each.toTensor());
      } else if (each.isTensorList()) {
        for (const Tensor& tensor : each.toTensorVector()) {
          made.push_back(tensor);
        }
      }
    }
    for (size_t at = 0; at < made.size(); ++at) {
      if (kernel.outputs[at].defined()) {
        Tensor(kernel.outputs[at]).copy_(made[at]);
      }
    }
  }
}

// ---- every operator that has no kernel of its own for CUDA

// Results of these are on the host, or their shape depends on values: the host waits for them.
const std::unordered_set<std::string> kWaits = {
    "aten::_local_scalar_dense", "aten::equal", "aten::is_set_to", "aten::nonzero",
    "aten::masked_select", "aten::unique_dim", "aten::_unique2", "aten::unique_consecutive",
    "aten::bincount"};

bool waits(const std::string& op, const Stack& stack) {
  return kWaits.count(op) != 0 || (op == "aten::repeat_interleave" && stack.back().isNone());
}

void check_int_mm(const Stack& stack, size_t first) {
  const Tensor rows = stack[first].toTensor();
  TORCH_CHECK(rows.size(0) > 16, "self.size(0) needs to be greater than 16, but got ", rows.size(0));
  TORCH_CHECK(rows.size(1) % 8 == 0, "self.size(1) needs to be a multiple of 8");
}

bool answer_dry(const std::string& op, Stack* stack, size_t first) {
  if (op == "aten::_local_scalar_dense") {
    const bool is_float = stack->at(first).toTensor().is_floating_point();
    const bool is_bool = stack->at(first).toTensor().scalar_type() == at::kBool;
    stack->resize(first);
    stack->emplace_back(is_bool ? at::Scalar(true) : is_float ? at::Scalar(1.0) : at::Scalar(0));
    return true;
  }
  if (op == "aten::equal") {
    stack->resize(first);
    stack->emplace_back(false);
    return true;
  }
  if (op == "aten::_cholesky_solve_helper") {  // torch has its shape in Python only, which is slow
    const Tensor result = at::empty_like(stack->at(first).toTensor());
    stack->resize(first);
    stack->emplace_back(result);
    return true;
  }
  return false;
}

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet /*keys*/, Stack* stack) {
  const auto& schema = op.schema();
  const std::string& name = schema.name();
  const size_t first = stack->size() - schema.arguments().size();
  num_kernels.fetch_add(1);
  if (waits(name, *stack)) {
    observe("wait", name, 0);
  }
  if (name == "aten::_int_mm") {
    check_int_mm(*stack, first);
  }
  if (is_dry.load() && answer_dry(name, stack, first)) {
    return;
  }
  Call call(name);
  for (size_t at = first; at < stack->size(); ++at) {
    (*stack)[at] = call.in((*stack)[at]);
  }
  const Stack inputs(stack->begin() + first, stack->end());  // which a replay converts again
  convert(name, *stack, first);
  op.callBoxed(*stack);
  if (recording != nullptr) {
    const Stack results(stack->begin() + first, stack->end());
    recording->kernels.push_back({op, inputs, new_tensors(call, results)});
  }
  call.write_back();
  for (size_t at = first; at < stack->size(); ++at) {
    (*stack)[at] = call.out((*stack)[at]);
  }
}

// ---- the operators that need one

// A GPU has a kernel for bfloat16. For other types torch reads where the groups end, on the host.
void grouped_mm(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const size_t first = stack->size() - op.schema().arguments().size();
  if (stack->at(first).toTensor().scalar_type() != at::kBFloat16) {
    observe("wait", "aten::_grouped_mm", 0);
  }
  fallback(op, keys, stack);
}

Tensor seen_by_host(const Tensor& tensor, Call& call) {
  return tensor.is_cuda() ? call.in(IValue(tensor)).toTensor() : tensor;
}

// A copy to or from memory that is not pinned waits, and so does one that is not asked not to.
void observe_copy(const Tensor& to, const Tensor& from, bool non_blocking) {
  const bool is_upload = to.is_cuda();
  const Tensor& on_host = is_upload ? from : to;
  const bool is_alone = non_blocking && is_pinned(on_host.storage().data());
  const auto num_bytes = static_cast<int64_t>(from.nbytes());
  observe(is_upload ? "upload" : "download", "aten::copy_", num_bytes);
  if (!is_alone) {
    observe("wait", is_upload ? "upload" : "download", num_bytes);
  }
}

Tensor& copy(Tensor& to, const Tensor& from, bool non_blocking) {
  if (to.is_same(from)) {
    return to;
  }
  if (to.is_cuda() != from.is_cuda()) {
    observe_copy(to, from, non_blocking);
  }
  num_kernels.fetch_add(1);
  if (is_dry.load()) {
    if (!to.is_cuda()) {
      to.fill_(1);
    }
    return to;
  }
  Call of_target("aten::copy_"), of_source("aten::copy_");
  Tensor target = seen_by_host(to, of_target), source = seen_by_host(from, of_source);
  target.copy_(source);
  if (recording != nullptr) {
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
    recording->kernels.push_back({op, {target, source, non_blocking}, {Tensor()}});
  }
  return to;
}

c10::DispatchKeySet cuda_keys() { return c10::DispatchKeySet(c10::DispatchKey::CUDA); }

Tensor empty(
    at::IntArrayRef sizes, std::optional<at::ScalarType> dtype, std::optional<at::Layout> /*layout*/,
    std::optional<at::Device> device, std::optional<bool> /*pin*/,
    std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(
      sizes, &card_allocator, cuda_keys(), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    at::IntArrayRef sizes, at::IntArrayRef strides, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> /*layout*/, std::optional<at::Device> device,
    std::optional<bool> /*pin*/) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(
      sizes, strides, &card_allocator, cuda_keys(), c10::dtype_or_default(dtype));
}

void record_stream(Tensor& /*self*/, at::Stream /*stream*/) {}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("copy_", copy);
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("record_stream", record_stream);
  library.impl("_grouped_mm", torch::CppFunction::makeFromBoxedFunction<&grouped_mm>());
}

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

}  // namespace
