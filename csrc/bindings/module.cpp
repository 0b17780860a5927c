// The extension's entry point: operator registration and build facts, no arithmetic.
//
// The implementations of irnet's operators are registered here, one TORCH_LIBRARY_IMPL(irnet, CPU, m) and, under
// IRNET_WITH_CUDA, one TORCH_LIBRARY_IMPL(irnet, CUDA, m). The schemas are declared in the api.py files of
// irnet_kernels, once, so that they exist without this extension too.

#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "tensors.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
    return "clang++ " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__) + "." +
           std::to_string(__clang_patchlevel__);
#elif defined(__GNUC__)
    return "g++ " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__) + "." +
           std::to_string(__GNUC_PATCHLEVEL__);
#else
    return "unknown";
#endif
}

// The IRNET_* macros come from setup.py. There is no date: the same sources give the same binary.
py::dict build_info() {
    const std::string cuda = IRNET_CUDA_VERSION;
    py::list architectures;
    std::istringstream list(IRNET_CUDA_ARCHITECTURES);
    for (std::string one; std::getline(list, one, ';');) {
        if (!one.empty()) architectures.append(one);
    }
    py::dict facts;
    facts["compiler"] = compiler();
    facts["cxx_standard"] = static_cast<int>(__cplusplus / 100 % 100);
    facts["torch_version"] = IRNET_TORCH_VERSION;
    facts["cuda_version"] = cuda.empty() ? py::object(py::none()) : py::object(py::str(cuda));
    facts["cuda_architectures"] = architectures;
    facts["commit"] = IRNET_COMMIT;
    return facts;
}

bool& cpu_path(const std::string& name) {
    irnet::CpuPaths& paths = irnet::cpu_paths();
    if (name == "streaming_stores") return paths.streaming_stores;
    if (name == "gates_by_onednn") return paths.gates_by_onednn;
    throw py::key_error(name);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.doc() = "irnet's native operators; importing it registers them with torch.";
    m.def("build_info", &build_info, "What this module was built with: compiler, versions, architectures, commit.");
    m.def(
        "cpu_path", [](const std::string& name) { return cpu_path(name); }, py::arg("name"),
        "Whether the path is taken, by choice of the processor: streaming_stores, gates_by_onednn (bfloat16).");
    m.def(
        "set_cpu_path", [](const std::string& name, bool taken) { cpu_path(name) = taken; }, py::arg("name"),
        py::arg("taken"), "Choose otherwise, for tests and measurements, while no operator runs.");
}
