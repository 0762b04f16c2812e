// Finds objects in one picture, without Python:
//   detect ssd_ext/_cpu.abi3.so run/best.aoti.pt2 picture.rgb
// The picture has 3 x 300 x 300 bytes without a header: first all red values, then green, then blue. Prints a line for
// each object: xmin ymin xmax ymax (fractions of the picture), its label (from 1) and its score.
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <vector>

constexpr int64_t kSize = 300;

at::Tensor read_picture(const char* path) {
  at::Tensor picture = at::empty({1, 3, kSize, kSize}, at::kByte);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(picture.mutable_data_ptr<uint8_t>()), picture.numel())) {
    throw std::runtime_error(std::string(path) + ": cannot be read, or is smaller than 3 x 300 x 300 bytes");
  }
  return picture;
}

int main(int argc, char** argv) try {
  if (argc != 4) throw std::runtime_error("usage: detect OPS_LIBRARY PACKAGE PICTURE");
  if (!dlopen(argv[1], RTLD_NOW)) throw std::runtime_error(dlerror());  // registers ssd_ext's ops
  torch::inductor::AOTIModelPackageLoader loader(argv[2]);
  std::vector<at::Tensor> found = loader.run({read_picture(argv[3])});
  const float* boxes = found[0].const_data_ptr<float>();      // (1, top_k, 4)
  const int64_t* labels = found[1].const_data_ptr<int64_t>();  // (1, top_k)
  const float* scores = found[2].const_data_ptr<float>();      // (1, top_k)
  const int count = found[3].const_data_ptr<int>()[0];
  for (int i = 0; i < count; ++i) {  // 9 digits distinguish all floats
    const float* box = boxes + 4 * i;
    std::printf("%.9g %.9g %.9g %.9g %lld %.9g\n", box[0], box[1], box[2], box[3], (long long)labels[i], scores[i]);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "detect: %s\n", error.what());
  return 1;
}
