"""What vLLM 0.32 knows for the fields whose values are open: its lists grow, so another value is warned about only."""

from __future__ import annotations

VLLM = "vLLM 0.32"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TOOL_CALL_PARSERS = _words(
    """apertus cohere_command3 cohere_command4 deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4 deepseek_v41 dots
    ernie45 functiongemma gemma4 gigachat3 glm45 glm47 granite granite-20b-fc granite4 hermes hf hunyuan_a13b hy_v3
    hy_v4 inkling internlm jamba k2_horizon kimi_k2 kimi_k3 lfm2 ling3 llama3_json llama4_json llama4_pythonic longcat
    mimo minicpm5 minimax_m2 minimax_m3 mistral muse_glimmer olmo3 openai phi4_mini_json plamo3 poolside_v1 pythonic
    qwen3_coder qwen3_json qwen3_xml seed_oss step3 step3p5 xlam"""
)
REASONING_PARSERS = _words(
    """cohere_command3 cohere_command4 deepseek_r1 deepseek_v3 deepseek_v4 deepseek_v41 ernie45 gemma4 glm45 glm47
    granite granite_thinking_parser hf holo2 hunyuan_a13b hy_v3 hy_v4 inkling k2_horizon kimi_k2 kimi_k3 ling3 mimo
    minicpmv minimax_m2 minimax_m2_append_think minimax_m3 mistral muse_glimmer nemotron_v3 olmo3 openai_gptoss plamo3
    poolside_v1 qwen3 seed_oss step3 step3p5"""
)
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
QUANTIZATIONS = _words(
    """awq auto_awq fp8 fbgemm_fp8 fp_quant modelopt modelopt_fp4 modelopt_mxfp8 modelopt_mixed auto_gptq gptq
    gptq_marlin awq_marlin humming compressed-tensors experts_int8 quark moe_wna16 torchao inc mxfp4 gpt_oss_mxfp4
    deepseek_v4_fp8 online fp8_per_tensor fp8_per_block fp8_per_channel int8_per_channel_weight_only nvfp4_per_token
    mxfp8"""
)
TOKENIZER_MODES = (
    "auto",
    "hf",
    "mistral",
    "deepseek_v32",
    "deepseek_v4",
    "deepseek_v41",
    "inkling",
    "kimi_k3",
    "cohere",
)


def nearest(word: str, known: tuple[str, ...]) -> str:
    """A question about the known word that is most like this one, after a semicolon; empty if none is like it."""
    from difflib import get_close_matches  # only a mistake needs it

    found = get_close_matches(word, known, n=1)
    return f'; did you mean "{found[0]}"?' if found else ""
