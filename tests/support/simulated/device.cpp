// Two accelerators on the CPU's memory, as torch's PrivateUse1: they fail where CUDA fails, and count what CUDA pays for.
//
// Every operator runs the CPU's kernel on the same memory. Besides, each device
//   - refuses tensors of another device, but for what CUDA accepts too;
//   - counts launches, synchronisations and copies, and the bytes that it holds, up to a limit;
//   - rounds the factors of products and convolutions to TF32 unless torch's settings forbid it;
//   - adds up the gradients of kernels in an order that changes, unless torch is to be deterministic;
//   - fails for good at an index that is out of range, or after so many launches.
// What it can't show: time, streams, asynchronous errors, graphs, drivers, and whatever only a real kernel rounds.

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::IValue;

constexpr DeviceIndex DEVICES = 2;
constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr uint32_t TF32_DROPPED = 13;  // bits of the significand

struct State {
  std::atomic<int64_t> launches{0}, synchronisations{0}, to_device{0}, to_host{0};
  std::atomic<int64_t> held{0}, peak{0}, limit{INT64_MAX}, launches_left{INT64_MAX};
  std::atomic<bool> failed{false};
  std::mutex reason_mutex;
  std::string reason;
};
State states[DEVICES];
thread_local DeviceIndex current = 0;
std::atomic<int64_t> orders{0};  // in which gradients of kernels were added up

DeviceIndex index_of(Device device) { return device.has_index() ? device.index() : current; }

void require_health(DeviceIndex index) {
  auto& state = states[index];
  if (!state.failed) return;
  std::lock_guard<std::mutex> guard(state.reason_mutex);
  throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, 719, "CUDA error: " + state.reason);
}

[[noreturn]] void fail(DeviceIndex index, const std::string& reason) {
  {
    std::lock_guard<std::mutex> guard(states[index].reason_mutex);
    states[index].reason = reason;
  }
  states[index].failed = true;
  require_health(index);
  throw std::logic_error("a failed device is healthy");
}

void launch(DeviceIndex index) {
  require_health(index);
  states[index].launches++;
  if (states[index].launches_left-- <= 0) fail(index, "unspecified launch failure");
}

void synchronise(DeviceIndex index) {
  require_health(index);
  states[index].synchronisations++;
}

void take(DeviceIndex index, int64_t bytes) {
  auto& state = states[index];
  int64_t held = state.held += bytes;
  if (held > state.limit) {
    state.held -= bytes;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes, " bytes. GPU ", index);
  }
  int64_t peak = state.peak;
  while (held > peak && !state.peak.compare_exchange_weak(peak, held)) {}
}

// --- memory -----------------------------------------------------------------------------------------------------------

// What lies behind a storage of a device: memory that it owns, or a storage of the CPU that holds a result.
struct Block {
  DeviceIndex index;
  int64_t bytes;
  void* owned;
  c10::Storage result;
};

void release(void* context) {
  auto* block = static_cast<Block*>(context);
  states[block->index].held -= block->bytes;
  if (block->owned != nullptr) c10::free_cpu(block->owned);
  delete block;
}

void release_host(void* context) { delete static_cast<c10::Storage*>(context); }

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto index = current;
    take(index, static_cast<int64_t>(bytes));
    void* data = bytes == 0 ? nullptr : c10::alloc_cpu(bytes);
    return {data, new Block{index, static_cast<int64_t>(bytes), data, {}}, &release, Device(TYPE, index)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(TYPE, &memory);

struct NoMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t) override { return {nullptr, nullptr, [](void*) {}, Device(TYPE, current)}; }
  void copy_data(void*, const void*, size_t) const override {}
};
NoMemory no_memory;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return TYPE; }
  Device exchangeDevice(Device device) const override { return Device(TYPE, std::exchange(current, index_of(device))); }
  Device getDevice() const override { return Device(TYPE, current); }
  void setDevice(Device device) const override { current = index_of(device); }
  void uncheckedSetDevice(Device device) const noexcept override { current = index_of(device); }
  c10::Stream getStream(Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, Device(TYPE, index_of(device)));
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  DeviceIndex deviceCount() const noexcept override { return DEVICES; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream& stream) const override { synchronise(stream.device_index()); }
  void synchronizeDevice(const DeviceIndex index) const override { synchronise(index); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return DEVICES; }
  DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(DeviceIndex index) const override { current = index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return std::exchange(current, index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return std::exchange(current, index); }
  Device getDeviceFromPtr(void*) const override { return Device(TYPE, current); }
};
Hooks hooks;

bool is_here(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == TYPE; }

// Below autograd and the transforms of torch.func, as inside a kernel.
struct Below {
  c10::impl::ForceDispatchKeyGuard clean{c10::default_included_set, c10::default_excluded_set};
  c10::impl::ExcludeDispatchKeyGuard excluded{
      c10::autograd_dispatch_keyset | c10::autocast_dispatch_keyset |
      DispatchKeySet({DispatchKey::FuncTorchDynamicLayerFrontMode, DispatchKey::FuncTorchDynamicLayerBackMode,
                      DispatchKey::FuncTorchGradWrapper, DispatchKey::FuncTorchBatched,
                      DispatchKey::FuncTorchVmapMode, DispatchKey::ADInplaceOrView, DispatchKey::Functionalize})};
};

at::Tensor shaped_as(const at::Tensor& tensor, c10::Storage storage, DispatchKey key) {
  auto out = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), tensor.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) out._set_conj(true);
  if (tensor.is_neg()) out._set_neg(true);
  return out;
}

// The CPU's view of a tensor of a device.
at::Tensor host(const at::Tensor& tensor) {
  auto* kept = new c10::Storage(tensor.storage());
  c10::DataPtr data(kept->mutable_data(), kept, &release_host, Device(c10::kCPU));
  c10::Storage storage(c10::Storage::use_byte_size_t(), kept->nbytes(), std::move(data), nullptr, false);
  return shaped_as(tensor, std::move(storage), DispatchKey::CPU);
}

// The device's view of a tensor that a kernel of the CPU returned.
at::Tensor device_view(const at::Tensor& tensor, DeviceIndex index) {
  if (!tensor.defined() || !tensor.device().is_cpu() || tensor.layout() != at::kStrided) return tensor;
  auto bytes = static_cast<int64_t>(tensor.storage().nbytes());
  bool again = tensor.storage().data_ptr().get_deleter() == &release_host;  // memory of a device already
  take(index, again ? 0 : bytes);
  auto* block = new Block{index, again ? 0 : bytes, nullptr, tensor.storage()};
  c10::DataPtr data(tensor.storage().mutable_data(), block, &release, Device(TYPE, index));
  c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, std::move(data), &memory, true);
  return shaped_as(tensor, std::move(storage), DispatchKey::PrivateUse1);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, &memory, DispatchKeySet(DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, &memory, DispatchKeySet(DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor efficient_zero(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                          std::optional<Device> device, std::optional<bool>) {
  c10::OptionalDeviceGuard guard(device);
  auto keys = DispatchKeySet(DispatchKey::PrivateUse1) | DispatchKeySet(DispatchKey::ZeroTensor);
  return at::detail::empty_generic(size, &no_memory, keys, c10::dtype_or_default(dtype), std::nullopt);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  auto bytes = static_cast<int64_t>(from.nbytes());
  if (is_here(from) && is_here(to)) {
    launch(to.get_device());
  } else if (is_here(to)) {
    require_health(to.get_device());
    states[to.get_device()].to_device += bytes;
  } else if (is_here(from)) {
    synchronise(from.get_device());
    states[from.get_device()].to_host += bytes;
  }
  Below below;
  (is_here(to) ? host(to) : to).copy_(is_here(from) ? host(from) : from);
  return to;
}

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef wanted, std::optional<at::MemoryFormat> format) {
  auto size = C10_AS_INTARRAYREF_SLOW(wanted);
  auto* storage = self.storage().unsafeGetStorageImpl();
  size_t needed = (c10::multiply_integers(size) + self.storage_offset()) * self.itemsize();
  if (storage->nbytes() < needed) {
    c10::DeviceGuard guard(self.device());
    auto fresh = memory.allocate(needed);
    if (storage->nbytes() > 0) std::memcpy(fresh.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(fresh));
    storage->set_nbytes(needed);
  }
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  if (format.has_value() && *format != at::MemoryFormat::Preserve)
    self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Tensor& set_storage(at::Tensor& self, at::Storage source) {
  auto size = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return at::native::set_storage_cpu_(self, source, 0, {size}, {1});
}

at::Scalar local_scalar(const at::Tensor& self) {
  synchronise(self.get_device());
  Below below;
  return host(self).item();
}

// --- operators --------------------------------------------------------------------------------------------------------

using Names = std::set<std::string>;

// On a device these take indices of the CPU too.
const Names TAKES_INDICES{"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};
// On a device the size of the result has to be awaited.
const Names AWAITED{"aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select", "aten::_unique2",
                    "aten::unique_dim", "aten::bincount", "aten::repeat_interleave", "aten::_linalg_eigh"};
// On a device an index that is out of range ends the process's use of it.
const Names INDEXED{"aten::embedding", "aten::index", "aten::index_select", "aten::gather", "aten::take",
                    "aten::nll_loss_forward", "aten::scatter", "aten::scatter_add", "aten::index_add",
                    "aten::embedding_dense_backward", "aten::index_put_", "aten::_index_put_impl_"};
const Names NOT_DETERMINISTIC{"aten::adaptive_avg_pool2d_backward", "aten::_adaptive_avg_pool2d_backward",
                              "aten::upsample_bilinear2d_backward", "aten::max_pool3d_with_indices_backward"};
const Names PRODUCTS{"aten::mm", "aten::bmm"};
const Names SUMS_OF_PRODUCTS{"aten::addmm", "aten::baddbmm"};

at::Tensor rounded(const at::Tensor& tensor, bool tf32) {
  if (!tf32 || tensor.scalar_type() != at::kFloat) return tensor;
  auto copy = tensor.clone();
  auto* bits = static_cast<uint32_t*>(copy.storage().mutable_data());
  for (size_t i = 0; i < copy.storage().nbytes() / sizeof(uint32_t); i++) {
    uint32_t half = (1u << (TF32_DROPPED - 1)) - 1 + ((bits[i] >> TF32_DROPPED) & 1);
    bits[i] = (bits[i] + half) & ~((1u << TF32_DROPPED) - 1);
  }
  return copy;
}

bool products_in_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

bool convolutions_in_tf32() { return at::globalContext().allowTF32CuDNN(at::Float32Op::CONV); }

template <typename Visit>
void visit_tensors(const IValue& value, Visit visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const auto& each : value.toTensorVector()) visit(each);
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor>& each : value.toOptionalTensorList())
      if (each.has_value()) visit(*each);
  }
}

// The device of the arguments; fails if they are on several.
DeviceIndex place(const std::string& name, const std::vector<IValue>& arguments) {
  std::set<DeviceIndex> here;
  bool elsewhere = false;
  for (const auto& value : arguments) {
    visit_tensors(value, [&](const at::Tensor& tensor) {
      if (is_here(tensor)) here.insert(tensor.device().index());
      else if (tensor.defined() && tensor.dim() > 0) elsewhere = true;  // a number may be on the CPU
    });
    if (value.isDevice() && value.toDevice().type() == TYPE && here.empty()) here.insert(index_of(value.toDevice()));
  }
  bool mixed = here.size() > 1 || (!here.empty() && elsewhere && TAKES_INDICES.count(name) == 0);
  TORCH_CHECK(!mixed, "Expected all tensors to be on the same device, but found several in ", name);
  return here.empty() ? current : *here.begin();
}

IValue on_host(const IValue& value) {
  if (value.isTensor()) return is_here(value.toTensor()) ? IValue(host(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const auto& each : value.toTensorVector()) list.push_back(is_here(each) ? host(each) : each);
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& each : value.toOptionalTensorList())
      list.push_back(each.has_value() && is_here(*each) ? std::optional<at::Tensor>(host(*each)) : each);
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == TYPE) return Device(at::kCPU);
  return value;
}

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

void round_factors(const std::string& name, std::vector<IValue>& arguments) {
  bool sum = SUMS_OF_PRODUCTS.count(name) > 0;
  if ((!sum && PRODUCTS.count(name) == 0) || !products_in_tf32()) return;
  for (size_t i = sum ? 1 : 0; i < (sum ? 3u : 2u); i++) arguments[i] = rounded(arguments[i].toTensor(), true);
}

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack& stack, const std::string& name, DeviceIndex index) {
  try {
    Below below;
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), &stack);
  } catch (const c10::IndexError&) {
    if (INDEXED.count(name) > 0) fail(index, "device-side assert triggered");
    throw;
  }
}

// An empty tensor that an operator writes to gets its size and memory from the CPU's kernel.
struct Grown {
  at::Tensor ours, theirs;
};

std::vector<IValue> host_arguments(const c10::FunctionSchema& schema, const std::vector<IValue>& arguments,
                                   std::vector<Grown>& grown) {
  std::vector<IValue> given;
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto& value = arguments[i];
    if (is_written(schema.arguments()[i]) && value.isTensor() && is_here(value.toTensor()) &&
        value.toTensor().numel() == 0) {
      auto ours = value.toTensor();
      at::Tensor theirs = at::detail::empty_generic({0}, c10::GetAllocator(c10::kCPU), DispatchKeySet(DispatchKey::CPU),
                                              ours.scalar_type(), std::nullopt);
      grown.push_back({ours, theirs});
      given.emplace_back(theirs);
    } else {
      given.push_back(on_host(value));
    }
  }
  return given;
}

IValue result_of(const c10::FunctionSchema& schema, size_t number, const IValue& result,
                 const std::vector<IValue>& arguments, DeviceIndex index) {
  const auto& returned = schema.returns()[number];
  if (is_written(returned)) {
    for (size_t i = 0; i < arguments.size(); i++) {
      const auto* alias = schema.arguments()[i].alias_info();
      if (alias != nullptr && *alias == *returned.alias_info()) return arguments[i];
    }
  }
  if (result.isTensor()) return device_view(result.toTensor(), index);
  if (result.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const auto& each : result.toTensorVector()) list.push_back(device_view(each, index));
    return list;
  }
  return result;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& name = schema.name();
  auto arguments = torch::jit::last(*stack, schema.arguments().size()).vec();
  auto index = place(name, arguments);
  launch(index);
  if (AWAITED.count(name) > 0) synchronise(index);
  if (NOT_DETERMINISTIC.count(name) > 0) at::globalContext().alertNotDeterministic(name);
  std::vector<Grown> grown;
  auto given = host_arguments(schema, arguments, grown);
  round_factors(name, given);
  torch::jit::Stack inner(given.begin(), given.end());
  run_on_cpu(op, inner, name, index);
  for (auto& [ours, theirs] : grown) {
    if (theirs.numel() == 0) continue;
    auto size = theirs.sym_sizes();
    resize(ours, size, std::nullopt);
    Below below;
    host(ours).copy_(theirs);
  }
  torch::jit::drop(*stack, arguments.size());
  for (size_t i = 0; i < schema.returns().size(); i++)
    torch::jit::push(*stack, result_of(schema, i, inner[i], arguments, index));
}

at::Tensor convolve(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, at::IntArrayRef stride,
                    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
                    int64_t groups) {
  std::vector<IValue> arguments{x, w};
  bool biased = b.has_value() && b->defined();
  if (biased) arguments.emplace_back(*b);
  auto index = place("aten::convolution", arguments);
  launch(index);
  bool tf32 = convolutions_in_tf32();
  Below below;
  std::optional<at::Tensor> bias;
  if (biased) bias = host(*b);
  auto y = at::convolution(rounded(host(x), tf32), rounded(host(w), tf32), bias, stride, padding, dilation, transposed,
                           output_padding, groups);
  return device_view(y, index);
}

// As cuDNN may, the gradient of the kernel is added up in another order each time.
at::Tensor summed_anew(const at::Tensor& gradient) {
  if (!gradient.defined() || at::globalContext().deterministicCuDNN() || at::globalContext().deterministicAlgorithms())
    return gradient;
  double unit = gradient.scalar_type() == at::kFloat ? 0x1p-23 : 0x1p-52;
  return at::mul(gradient, at::Scalar(1 + unit * static_cast<double>(orders++ % 3 - 1)));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_backward(
    const at::Tensor& slope, const at::Tensor& x, const at::Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  auto index = place("aten::convolution_backward", {slope, x, w});
  launch(index);
  launch(index);
  bool tf32 = convolutions_in_tf32();
  Below below;
  auto [dx, dw, db] = at::convolution_backward(
      rounded(host(slope), tf32), rounded(host(x), tf32), rounded(host(w), tf32), at::OptionalIntArrayRef(std::nullopt),
      stride, padding, dilation, transposed, output_padding, groups, mask);
  return {device_view(dx, index), device_view(summed_anew(dw), index), device_view(db, index)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_efficientzerotensor", &efficient_zero);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("resize_", &resize);
  m.impl("as_strided", [](const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                          std::optional<int64_t> offset) {
    return at::native::as_strided_tensorimpl(self, size, stride, offset);
  });
  m.impl("view", [](const at::Tensor& self, at::IntArrayRef size) { return at::native::view(self, size); });
  m.impl("_reshape_alias", [](const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride) {
    return at::native::_reshape_alias(self, size, stride);
  });
  m.impl("unfold", [](const at::Tensor& self, int64_t dimension, int64_t size, int64_t step) {
    return at::native::unfold(self, dimension, size, step);
  });
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Storage_storage_offset",
         [](at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride)
             -> at::Tensor& { return at::native::set_storage_cpu_(self, source, offset, size, stride); });
  m.impl("convolution_overrideable", &convolve);
  m.impl("convolution_backward_overrideable", &convolve_backward);
}

}  // namespace

extern "C" {
void sim_register() { at::RegisterPrivateUse1HooksInterface(&hooks); }
int sim_devices() { return DEVICES; }
int sim_current() { return current; }
void sim_set_current(int index) { current = static_cast<DeviceIndex>(index); }
void sim_synchronise(int index) { synchronise(static_cast<DeviceIndex>(index)); }

// Launches, synchronisations, bytes copied to and from the device, bytes held and at most held.
void sim_counts(int index, int64_t* counts) {
  const auto& state = states[index];
  int n = 0;
  for (const auto* each : {&state.launches, &state.synchronisations, &state.to_device, &state.to_host, &state.held,
                           &state.peak})
    counts[n++] = *each;
}

void sim_reset(int index) {
  auto& state = states[index];
  for (auto* each : {&state.launches, &state.synchronisations, &state.to_device, &state.to_host}) *each = 0;
  state.peak = state.held.load();
  state.limit = state.launches_left = INT64_MAX;
  state.failed = false;
}

void sim_limit(int index, int64_t bytes) { states[index].limit = bytes; }
void sim_fail_after(int index, int64_t launches) { states[index].launches_left = launches; }
}
