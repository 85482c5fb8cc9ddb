// A libcublas without a GPU, for the stream and the memory of fake_libcuda.cpp, into whose library it is built. Where
// the real header is at hand it is compiled against it. What the library would refuse, what would make it slow, and
// what would make its results depend on more than its inputs, is an error here.

#pragma GCC visibility push(default)
#include "fake_driver.h"

#if __has_include(<cublas_api.h>) && __has_include(<nv/target>)  // its own headers need that one
#include <cublas_api.h>
#else
using cublasHandle_t = struct cublasContext*;
using cudaStream_t = CUstream;
enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_NOT_INITIALIZED = 1, CUBLAS_STATUS_ALLOC_FAILED = 3,
                      CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_EXECUTION_FAILED = 13 };
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
enum cublasMath_t { CUBLAS_DEFAULT_MATH = 0, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cudaDataType { CUDA_R_32F = 0, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
enum libraryPropertyType { MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL };
#endif

#include <cstdint>
#include <cstring>
#include <set>

namespace {

struct Handle {
    CUstream stream = nullptr;
    size_t workspace = 0;
    int math = CUBLAS_DEFAULT_MATH;
};
std::set<cublasHandle_t> handles;
int products = 0;

Handle* known(cublasHandle_t handle) {
    return fake::current() && handles.count(handle) ? reinterpret_cast<Handle*>(handle) : nullptr;
}

size_t bytes_of(cudaDataType type) { return type == CUDA_R_32F ? 4 : 2; }

float value(const char* at, cudaDataType type) {
    uint16_t half;
    uint32_t bits;
    if (type == CUDA_R_32F) {
        std::memcpy(&bits, at, 4);
    } else {
        std::memcpy(&half, at, 2);
        bits = uint32_t(half) << 16;
    }
    float result;
    if (type == CUDA_R_16F) {
        _Float16 small;
        std::memcpy(&small, at, 2);
        return float(small);
    }
    std::memcpy(&result, &bits, 4);
    return result;
}

// Whether `columns` columns of `rows` numbers, `stride` numbers apart, lie in one allocation.
bool matrix(const void* begin, int rows, int columns, int stride, size_t size) {
    auto address = reinterpret_cast<CUdeviceptr>(begin);
    return rows > 0 && columns > 0 && stride >= rows && address % 16 == 0 &&
           fake::inside(address, (size_t(columns - 1) * stride + rows) * size);
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* made) {
    if (!fake::current()) return CUBLAS_STATUS_NOT_INITIALIZED;
    *made = reinterpret_cast<cublasHandle_t>(new Handle);
    handles.insert(*made);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) {
    if (!known(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    handles.erase(handle);
    return delete reinterpret_cast<Handle*>(handle), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetProperty(libraryPropertyType type, int* number) {
    return *number = type == MAJOR_VERSION ? 12 : type == MINOR_VERSION ? 8 : 4, CUBLAS_STATUS_SUCCESS;
}
const char* cublasGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_INVALID_VALUE ? "said the library" : "another reason";
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    auto* found = known(handle);
    if (!found || !stream) return CUBLAS_STATUS_INVALID_VALUE;
    found->stream = reinterpret_cast<CUstream>(stream);
    found->workspace = 0;  // the documentation says so
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
    auto* found = known(handle);
    auto address = reinterpret_cast<CUdeviceptr>(workspace);
    if (!found || address % 256 || !bytes || !fake::inside(address, bytes)) return CUBLAS_STATUS_INVALID_VALUE;
    return found->workspace = bytes, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
    auto* found = known(handle);
    return found ? (found->math = mode, CUBLAS_STATUS_SUCCESS) : CUBLAS_STATUS_NOT_INITIALIZED;
}

cublasStatus_t cublasGemmEx(
    cublasHandle_t handle, cublasOperation_t transpose_a, cublasOperation_t transpose_b, int m, int n, int k,
    const void* alpha, const void* a, cudaDataType a_type, int a_stride, const void* b, cudaDataType b_type,
    int b_stride, const void* beta, void* c, cudaDataType c_type, int c_stride, cublasComputeType_t compute,
    cublasGemmAlgo_t algorithm) {
    auto* found = known(handle);
    if (!found || !found->stream) return CUBLAS_STATUS_NOT_INITIALIZED;
    // Without memory of its caller's it would take some of its own; another mode would round to fewer bits.
    if (found->workspace < (4 << 20) || found->math != CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)
        return CUBLAS_STATUS_EXECUTION_FAILED;
    if (transpose_a != CUBLAS_OP_T || transpose_b != CUBLAS_OP_N || algorithm != CUBLAS_GEMM_DEFAULT)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a_type != b_type || (a_type != CUDA_R_32F && a_type != CUDA_R_16F && a_type != CUDA_R_16BF))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (c_type != CUDA_R_32F || compute != CUBLAS_COMPUTE_32F) return CUBLAS_STATUS_INVALID_VALUE;
    float one, zero;
    std::memcpy(&one, alpha, 4), std::memcpy(&zero, beta, 4);
    if (one != 1.0f || zero != 0.0f) return CUBLAS_STATUS_INVALID_VALUE;
    size_t size = bytes_of(a_type);
    if (!matrix(a, k, m, a_stride, size) || !matrix(b, k, n, b_stride, size) || !matrix(c, m, n, c_stride, 4))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a_stride * size % 16 || b_stride * size % 16) return CUBLAS_STATUS_INVALID_VALUE;  // it would be slow
    auto work = [=] {
        products++;
        for (int column = 0; column < n; column++)
            for (int row = 0; row < m; row++) {
                auto* left = static_cast<const char*>(a) + size_t(row) * a_stride * size;
                auto* right = static_cast<const char*>(b) + size_t(column) * b_stride * size;
                double sum = 0;
                for (int place = 0; place < k; place++)
                    sum += double(value(left + place * size, a_type)) * value(right + place * size, a_type);
                static_cast<float*>(c)[size_t(column) * c_stride + row] = float(sum);
            }
    };
    return fake::run(found->stream, work) == CUDA_SUCCESS ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

// What tests ask of it.

void fake_products(int64_t* counts) { counts[0] = int64_t(handles.size()), counts[1] = products; }
}
