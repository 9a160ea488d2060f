// Runs an ONNX file of statten-export on recorded samples and compares its answers with the recorded ones.
//
//   edge MODEL.onnx VECTORS.raw [--threads N] [--tolerance X]
//
// Both layouts: a sequence file takes a sample in one call, a stream file is called again and again, each time with the
// states that the call before left. Exit status: 0 all answers agree, 1 some do not, 2 bad input.
// Needs nothing but onnxruntime's C API; VECTORS.raw is written by vectors_to_raw.py.

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

const OrtApi* ort = nullptr;

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = ort->GetErrorMessage(status);
  ort->ReleaseStatus(status);
  throw std::runtime_error(message);
}

struct Release {
  void operator()(OrtEnv* p) const { ort->ReleaseEnv(p); }
  void operator()(OrtSessionOptions* p) const { ort->ReleaseSessionOptions(p); }
  void operator()(OrtSession* p) const { ort->ReleaseSession(p); }
  void operator()(OrtMemoryInfo* p) const { ort->ReleaseMemoryInfo(p); }
  void operator()(OrtTypeInfo* p) const { ort->ReleaseTypeInfo(p); }
  void operator()(OrtTensorTypeAndShapeInfo* p) const { ort->ReleaseTensorTypeAndShapeInfo(p); }
  void operator()(OrtModelMetadata* p) const { ort->ReleaseModelMetadata(p); }
  void operator()(OrtValue* p) const { ort->ReleaseValue(p); }
};

template <class T>
using Owned = std::unique_ptr<T, Release>;

// Calls `make` with somewhere to put a new object, and owns it.
template <class T, class Make>
Owned<T> made(Make&& make) {
  T* raw = nullptr;
  check(make(&raw));
  return Owned<T>(raw);
}

struct Array {
  std::vector<int64_t> shape;
  std::vector<float> data;

  size_t row() const { return shape.empty() || shape[0] == 0 ? 0 : data.size() / static_cast<size_t>(shape[0]); }
};

// A named input or output; sizes below 0 are free.
struct Port {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
};

size_t count(const std::vector<int64_t>& shape) {
  size_t numbers = 1;
  for (const int64_t size : shape) numbers *= static_cast<size_t>(size);
  return numbers;
}

// A whole number of at least 1, as an option or the metadata say it.
int whole(const std::string& text, const std::string& what) {
  if (!text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos)
    if (const int number = std::stoi(text); number >= 1) return number;
  throw std::runtime_error(what + ": expected a whole number of at least 1, found '" + text + "'");
}

size_t bytes_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return 1;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return 8;
    default:
      throw std::runtime_error("a state of a type that statten-export does not write");
  }
}

constexpr char kMagic[] = "STATTEN1";  // 8 bytes, then for each array: rank, sizes (int64), numbers (float32)

Array read_array(std::ifstream& file, const std::string& path) {
  const auto bad = [&] { return std::runtime_error(path + ": ends too early; write it with vectors_to_raw.py"); };
  int64_t rank = 0;
  if (!file.read(reinterpret_cast<char*>(&rank), sizeof rank) || rank < 1 || rank > 8) throw bad();
  Array array;
  array.shape.resize(static_cast<size_t>(rank));
  if (!file.read(reinterpret_cast<char*>(array.shape.data()), rank * 8)) throw bad();
  const int64_t left = static_cast<int64_t>(std::filesystem::file_size(path)) - static_cast<int64_t>(file.tellg());
  int64_t numbers = 1;
  for (const int64_t size : array.shape) {
    if (size < 1 || size > left / 4 / numbers) throw bad();
    numbers *= size;
  }
  array.data.resize(static_cast<size_t>(numbers));
  if (!file.read(reinterpret_cast<char*>(array.data.data()), numbers * 4)) throw bad();
  return array;
}

class Network {
 public:
  Network(const std::filesystem::path& path, int threads) {
    env_ = made<OrtEnv>([](OrtEnv** out) { return ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "edge", out); });
    auto options = made<OrtSessionOptions>([](OrtSessionOptions** out) { return ort->CreateSessionOptions(out); });
    check(ort->SetIntraOpNumThreads(options.get(), threads));
    session_ = made<OrtSession>(
        [&](OrtSession** out) { return ort->CreateSession(env_.get(), path.c_str(), options.get(), out); });
    memory_ = made<OrtMemoryInfo>(
        [](OrtMemoryInfo** out) { return ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, out); });
    size_t inputs = 0, outputs = 0;
    check(ort->SessionGetInputCount(session_.get(), &inputs));
    check(ort->SessionGetOutputCount(session_.get(), &outputs));
    for (size_t i = 0; i < inputs; ++i)
      inputs_.push_back(port(i, ort->SessionGetInputName, ort->SessionGetInputTypeInfo));
    for (size_t i = 0; i < outputs; ++i)
      outputs_.push_back(port(i, ort->SessionGetOutputName, ort->SessionGetOutputTypeInfo));
    if (inputs_.empty() || inputs_[0].type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || outputs_.empty())
      throw std::runtime_error("not a file of statten-export: no float32 input");
    const std::string layout = metadata("layout");
    if (layout != "sequence" && layout != "stream")
      throw std::runtime_error("not a file of statten-export: no layout in its metadata");
    held_ = metadata("input") == "image";
    const auto told = [&](const char* key) { return whole(metadata(key), std::string(key) + " of the file"); };
    calls_ = layout == "stream" ? told("time_steps") / told("steps_per_call") : 1;
    reset();
  }

  // Everything before the first step is zero.
  void reset() {
    for (size_t i = 1; i < inputs_.size(); ++i) states_[inputs_[i].name] = zeros(inputs_[i]);
  }

  // Calls for one sample, and the numbers that one of them takes.
  int calls() const { return calls_; }
  bool held() const { return held_; }
  size_t numbers_per_call() const { return count(single(inputs_[0].shape)); }

  // One call for one sample; `x` holds `numbers_per_call` numbers. Returns the first output.
  std::vector<float> call(const float* x) {
    const std::vector<int64_t> shape = single(inputs_[0].shape);
    auto input = tensor(const_cast<float*>(x), count(shape) * sizeof(float), shape, inputs_[0].type);
    std::vector<const char*> in_names, out_names;
    std::vector<const OrtValue*> in;
    for (const Port& port : inputs_) {
      in_names.push_back(port.name.c_str());
      in.push_back(port.name == inputs_[0].name ? input.get() : states_.at(port.name).value.get());
    }
    std::vector<OrtValue*> out(outputs_.size(), nullptr);
    for (const Port& port : outputs_) out_names.push_back(port.name.c_str());
    check(ort->Run(session_.get(), nullptr, in_names.data(), in.data(), in.size(), out_names.data(), out.size(),
                   out.data()));
    std::vector<Owned<OrtValue>> owned(out.begin(), out.end());
    for (size_t i = 0; i < outputs_.size(); ++i) {  // what comes out as next/NAME goes in as state/NAME
      if (outputs_[i].name.rfind("next/", 0) != 0) continue;
      State& state = states_.at("state/" + outputs_[i].name.substr(5));
      state.value = std::move(owned[i]);
      state.buffer.clear();
    }
    return numbers(owned[0].get());
  }

 private:
  struct State {
    std::vector<char> buffer;  // behind `value` as long as that is the zeros it began with
    Owned<OrtValue> value;
  };

  template <class GetName, class GetType>
  Port port(size_t index, GetName get_name, GetType get_type) {
    OrtAllocator* allocator = nullptr;  // not ours to release
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    char* name = nullptr;
    check(get_name(session_.get(), index, allocator, &name));
    Port port{name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, {}};
    check(ort->AllocatorFree(allocator, name));
    auto type = made<OrtTypeInfo>([&](OrtTypeInfo** out) { return get_type(session_.get(), index, out); });
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort->CastTypeInfoToTensorInfo(type.get(), &info));
    if (info == nullptr) throw std::runtime_error(port.name + ": not a tensor");
    check(ort->GetTensorElementType(info, &port.type));
    size_t rank = 0;
    check(ort->GetDimensionsCount(info, &rank));
    port.shape.resize(rank);
    check(ort->GetDimensions(info, port.shape.data(), rank));
    return port;
  }

  std::string metadata(const char* key) {
    OrtAllocator* allocator = nullptr;
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    auto all = made<OrtModelMetadata>(
        [&](OrtModelMetadata** out) { return ort->SessionGetModelMetadata(session_.get(), out); });
    char* value = nullptr;
    check(ort->ModelMetadataLookupCustomMetadataMap(all.get(), allocator, key, &value));
    if (value == nullptr) return "";
    const std::string text = value;
    check(ort->AllocatorFree(allocator, value));
    return text;
  }

  // The shape for one sample: the batch axis is the only free one.
  static std::vector<int64_t> single(std::vector<int64_t> shape) {
    for (int64_t& size : shape) size = size < 0 ? 1 : size;
    return shape;
  }

  Owned<OrtValue> tensor(void* data, size_t bytes, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
    return made<OrtValue>([&](OrtValue** out) {
      return ort->CreateTensorWithDataAsOrtValue(memory_.get(), data, bytes, shape.data(), shape.size(), type, out);
    });
  }

  State zeros(const Port& port) {
    const std::vector<int64_t> shape = single(port.shape);
    State state;
    state.buffer.assign(std::max<size_t>(count(shape) * bytes_of(port.type), 1), 0);
    state.value = tensor(state.buffer.data(), count(shape) * bytes_of(port.type), shape, port.type);
    return state;
  }

  static std::vector<float> numbers(OrtValue* value) {
    auto info = made<OrtTensorTypeAndShapeInfo>(
        [&](OrtTensorTypeAndShapeInfo** out) { return ort->GetTensorTypeAndShape(value, out); });
    size_t size = 0;
    check(ort->GetTensorShapeElementCount(info.get(), &size));
    void* data = nullptr;
    check(ort->GetTensorMutableData(value, &data));
    const float* first = static_cast<const float*>(data);
    return {first, first + size};
  }

  Owned<OrtEnv> env_;
  Owned<OrtSession> session_;
  Owned<OrtMemoryInfo> memory_;
  std::vector<Port> inputs_, outputs_;
  std::map<std::string, State> states_;
  bool held_ = false;
  int calls_ = 1;
};

size_t label(const std::vector<float>& logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

int run(int argc, char** argv) {
  if (argc < 3) throw std::runtime_error("usage: edge MODEL.onnx VECTORS.raw [--threads N] [--tolerance X]");
  int threads = 1;
  float tolerance = 1e-4F;
  for (int i = 3; i < argc; i += 2) {
    if (i + 1 == argc) throw std::runtime_error(std::string(argv[i]) + " needs a value");
    if (std::strcmp(argv[i], "--threads") == 0) threads = whole(argv[i + 1], argv[i]);
    else if (std::strcmp(argv[i], "--tolerance") == 0) tolerance = std::stof(argv[i + 1]);
    else throw std::runtime_error(std::string("unknown option ") + argv[i]);
  }
  const std::string vectors = argv[2];
  std::ifstream file(vectors, std::ios::binary);
  char magic[8] = {};
  if (!file.read(magic, sizeof magic) || std::memcmp(magic, kMagic, sizeof magic) != 0)
    throw std::runtime_error(vectors + ": not readable, or not written by vectors_to_raw.py");
  const Array input = read_array(file, vectors), expected = read_array(file, vectors);
  Network network(argv[1], threads);

  const size_t per_call = network.numbers_per_call(), calls = static_cast<size_t>(network.calls());
  if (input.row() != per_call * (network.held() ? 1 : calls) || expected.shape[0] != input.shape[0])
    throw std::runtime_error(vectors + ": its samples are not what the network takes");
  float largest = 0;
  size_t wrong = 0;
  const size_t samples = static_cast<size_t>(input.shape[0]);
  for (size_t n = 0; n < samples; ++n) {
    network.reset();
    std::vector<float> logits;
    std::printf("sample %zu:", n);
    for (size_t c = 0; c < calls; ++c) {  // an image is shown again and again; of frames, the next ones come
      logits = network.call(input.data.data() + n * input.row() + (network.held() ? 0 : c * per_call));
      std::printf(" %zu", label(logits));
    }
    const float* recorded = expected.data.data() + n * expected.row();
    const std::vector<float> wanted(recorded, recorded + expected.row());
    if (logits.size() != wanted.size())
      throw std::runtime_error(vectors + ": its answers are not what the network gives");
    for (size_t i = 0; i < logits.size(); ++i) {
      const float difference = std::fabs(logits[i] - wanted[i]);
      largest = std::isfinite(difference) ? std::max(largest, difference) : INFINITY;
    }
    wrong += label(logits) != label(wanted);
    std::printf(label(logits) == label(wanted) ? "\n" : " (expected %zu)\n", label(wanted));
  }
  std::printf("%zu of %zu labels agree, largest difference %g\n", samples - wrong, samples, largest);
  return wrong == 0 && largest <= tolerance ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == nullptr) throw std::runtime_error("this onnxruntime is older than the headers it was built with");
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "edge: error: %s\n", error.what());
    return 2;
  }
}
