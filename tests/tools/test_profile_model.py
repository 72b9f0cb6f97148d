"""tools/profile_model.py: what a kernel counts as, and how kernels add up. Kernels are timed on a GPU only."""

import profile_model
import pytest

CUDNN = ("sm90_xmma_{}_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x256x32_warpgroupsize2x1x1_g1_"
         "execute_{}")
NAMES = {
    "scan": [
        "ss2d_fwd_kernel_n1", "ss2d_bwd_kernel_n1", "scan_fwd_kernel", "scan_bwd_kernel", "segment_kernel",
        "chain_kernel", "arrange_kernel", "gather_kernel", "dproj_kernel", "assemble_kernel", "gate_bwd_kernel",
        "ssd_forward_kernel", "ssd_states_kernel", "ssd_carry_kernel", "ssd_backward_kernel", "ssd_group_kernel"],
    "convolutions": [
        CUDNN.format("fprop", "segment_k_off_kernel__5x_cudnn"), CUDNN.format("wgrad", "kernel__5x_cudnn"),
        "cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized_bf16_128x128_32x5_nhwc_align8>",
        "void convolve_common_engine_float_NHWC<__nv_bfloat16, __nv_bfloat16, 128, 5, 5, 3, 3, 3, true, false>",
        "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>"],
    "matrix products": [
        "nvjet_sm90_tst_192x192_64x4_2x1_v_bz_coopB_bias_TNN", "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize64x64x8",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float>", "triton_tem_fused_addmm_3"],
    "merge, residual and LayerNorm": [
        "merge_norm_fwd_kernel", "merge_norm_bwd_kernel", "merge_kernel",
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>"],
    "depthwise convolution and SiLU": ["conv_kernel", "conv_silu_bwd_kernel"],
    "neighbourhood attention": [
        "weights_kernel", "scores_backward_kernel", "window_gather_kernel", "spread_kernel"],
    "GELU": ["gelu_bwd_kernel", "void at::native::vectorized_elementwise_kernel<8, at::native::GeluCUDAKernelImpl>"],
    "attention": [
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 64>>",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7"],
    "compiled pointwise and reductions": [
        "triton_poi_fused__to_copy_add_layer_norm_clone_convolution_permute_2", "triton_red_fused_sum_1",
        "triton_per_fused_native_layer_norm_0"],
    "optimizer": ["void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>"],
    "copies and fills": ["Memcpy DtoD (Device -> Device)", "Memset (Device)",
                         "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>"],
    "reductions": ["void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float>>"],
    "pointwise": ["void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>"],
    "other": ["void at::native::vectorized_gather_kernel<16, long>", "segment_kernel_of_someone_else"],
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in NAMES.items() for name in names])
def test_what_a_kernel_computes(part, name):
    assert profile_model.part_of(name) == part


def test_every_part_has_an_example():
    assert {part for part, _ in profile_model.PARTS} | {"other"} == set(NAMES)


def test_breakdown_adds_up_and_the_rest_is_idle():
    kernels = {"merge_kernel": (1.0, 2), "ss2d_fwd_kernel_n1": (2.0, 14), "merge_norm_fwd_kernel": (1.5, 48)}
    assert profile_model.breakdown(kernels, step_ms=8.0) == [
        {"part": "merge, residual and LayerNorm", "ms": "2.500", "percent": "31.2", "launches": 50},
        {"part": "scan", "ms": "2.000", "percent": "25.0", "launches": 14},
        {"part": "idle", "ms": "3.500", "percent": "43.8", "launches": 0}]


def test_a_step_that_its_kernels_fill_is_never_idle():
    assert [row["part"] for row in profile_model.breakdown({"scan_fwd_kernel": (5.0, 1)}, step_ms=4.9)] == ["scan"]


def test_a_cpu_is_refused_before_anything_is_written(tmp_path, capsys):
    path = tmp_path / "profile.csv"
    assert profile_model.main(["test_vmamba", "--device", "cpu", "--results-file", str(path)]) == 2
    captured = capsys.readouterr()
    assert "kernels are profiled on a CUDA device; time a CPU with tools/benchmark.py" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not path.exists()
