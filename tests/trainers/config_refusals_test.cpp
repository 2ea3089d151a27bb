// Configs that are refused, each with its value, the range or the fix, and those that only look wrong.
#include "tests/support/errors.h"
#include "tests/trainers/config_text.h"
#include "trainers/config/check.h"

namespace weft::config {
namespace {

using test::error_of;
using test::expect_parts;
using test::kTiny;
using test::kTwoMixers;
using test::load_string;

TEST(Config, RefusesImpossibleAttention) {
  struct Row {
    std::vector<std::string> overrides;
    std::vector<std::string> parts;
  };
  const std::string softmax = "model.mixer[0].softmax.";
  for (const Row& row : std::vector<Row>{
           {{softmax + "gate=[{position:out},{position:out}]"}, {"gate on out twice", "one gate per position"}},
           {{softmax + "gate=[{position:layer,per_head:true}]"},
            {"there are no heads", "out, values, keys or queries"}},
           {{softmax + "gate=[{activation:identity}]"}, {"bare projection", "sigmoid, silu or shifted_sigmoid"}},
           {{softmax + "components=3"}, {"3 components for 4 kv_heads", "divisor"}},
           {{softmax + "components=2", softmax + "bias=true"}, {"components with biases"}},
           {{softmax + "input_bias=true", softmax + "bias=true"}, {"biases on all projections"}},
           {{softmax + "l2_norm=true", softmax + "score_scale=true"}, {"score scale beside"}},
           {{softmax + "weights={kind:sigmoid}", softmax + "sink={}"}, {"a sink beside sigmoid", "value_bias"}},
           {{softmax + "weights={kind:signed_softmax}", softmax + "sink={kind:key_bias}"}, {"beside signed weights"}},
           {{softmax + "weights={divide_by_sum:true}"}, {"which is 1 already", "sigmoid, relu, elu1 or taylor2"}},
           {{softmax + "weights={kind:sigmoid,bias:row}", softmax + "soft_cap=5"}, {"bias per row under a soft cap"}},
           {{softmax + "score_shift=true"}, {"a score shift under softmax weights", "a sink of kind logit"}},
           {{softmax + "l2_norm=true", softmax + "qk_norm=true"}, {"l2_norm", "qk_norm"}}}) {
    SCOPED_TRACE(row.overrides[0]);
    std::vector<std::string> parts = row.parts;
    parts.push_back("model.mixer[0].softmax");
    expect_parts(error_of(kTwoMixers, row.overrides), parts);
  }
}

TEST(Config, RefusesImpossibleResidualStreams) {
  for (auto [override, part] : std::initializer_list<std::pair<const char*, const char*>>{
           {"model.residual={attention{blocks:99}}", "sublayers"},
           {"model.residual={delta{blocks:2,states:true}}", "stands beside blocks"},
           {"model.residual={attention{window:1,states:true}}", "outputs only"}})
    expect_parts(error_of(kTwoMixers, {override}), {"model.residual.", part});
  EXPECT_TRUE(load_string(kTwoMixers, {"model.residual={delta{}}"}).experiment.model().residual().delta().key_norm());
}

// Runs that were trained with such an id are read: a config is asked where it is to be trained.
TEST(Config, AsksWhereARunStartsWhetherTheEndOfATextIsAnId) {
  const Loaded other = load_string(kTiny, {"model.vocab=300", "data.end_of_text=256"});
  EXPECT_TRUE(is_overridden(other, "data.end_of_text"));
  EXPECT_EQ(weft::test::error_of([&] { check_end_of_text(other); },
                                 {"data.end_of_text=256: data.end_of_text is 256, but the bytes tokenizer has 256 ids.",
                                  "[0, 255]", "data.end_of_text="}),
            "");
  check_end_of_text(load_string(kTiny, {"model.vocab=300", "data.end_of_text=255"}));
}

// Folders of studies are called gate=head,seed=1: what is blamed is what the command line set.
TEST(Config, AnEqualsSignInTheNameOfAFileIsNoOverride) {
  Loaded read = read_string(kTiny, "gate=head/config.txtpb", "/", {"model.context=10M", "train.micro_batch=4"});
  EXPECT_TRUE(is_overridden(read, "model.context"));
  for (const char* path : {"train.tokens_per_step", "model.dim", "seed"})
    EXPECT_FALSE(is_overridden(read, path)) << path;
  Loaded whole = read_string(kTiny, "a=b/config.txtpb", "/", {"data={tokenizer{bytes{}} end_of_text:7}"});
  EXPECT_TRUE(is_overridden(whole, "data.end_of_text"));
  read = read_string(kTiny, "gate=head/config.txtpb", "/", {"train.tokens_per_step=64", "train.micro_batch=5"});
  EXPECT_EQ(weft::test::error_of([&] { resolve(read); }, {"train.micro_batch=5: train.micro_batch makes"}), "");
}

struct CheckRow {
  std::vector<std::string> overrides;
  std::vector<std::string> parts;
};

// Impossible configs: argument, path, value, allowed range or fix.
TEST(Config, RefusesImpossibleConfigs) {
  const CheckRow rows[] = {
      {{"model.mixer[0].softmax.heads=5"},
       {"model.mixer[0].softmax.heads=5: model.mixer[0].softmax.heads is 5, which does not divide model.dim 64.",
        "2, 4, 8"}},
      {{"model.mixer[0].softmax.kv_heads=3"}, {"kv_heads is 3, which does not divide heads 4.", "1, 2, 4"}},
      {{"model.mixer[0].softmax.kv_heads=8"}, {"kv_heads is 8, which does not divide heads 4."}},
      {{"model.mixer[0].softmax.window=0"},
       {"window is 0, outside the allowed range.", "an integer in [1, 2147483647] tokens"}},
      {{"model.mixer[0].softmax.dropout=1"}, {"dropout is 1, outside", "[0, 1)"}},
      {{"model.mixer[0].softmax.dropout=-0.1"}, {"dropout is -0.1, outside", "[0, 1)"}},
      {{"model.mixer[0].softmax.soft_cap=0"}, {"soft_cap is 0, outside", "(0, inf)"}},
      {{"model.mixer[0].softmax.head_dim=15"}, {"model.mixer[0].softmax.head_dim gives heads of width 15", "even"}},
      {{"model.dim=12"}, {"tiny.txtpb:4:21: model.mixer[0].softmax.heads gives heads of width 3", "even"}},
      {{"model.position.rope.fraction=0.3"}, {"model.position.rope.fraction is 0.3: it rotates 4.8 of 16 features"}},
      {{"model.position.rope.fraction=0"}, {"fraction is 0, outside", "(0, 1]"}},
      {{"model.position.rope.scaling.llama3.low_freq_factor=4"},
       {"low_freq_factor is 4, must be below high_freq_factor 4"}},
      {{"model.position.rope.scaling={yarn{factor:2 original_context:64 beta_slow:40}}"},
       {"beta_slow is 40, must be below beta_fast 32"}},
      {{"model.position.rope.scaling={linear{}}"},
       {"model.position.rope.scaling.linear.factor is missing", "a number in [1, inf)"}},
      {{"model.pattern=0 1"}, {"model.pattern is \"0 1\": index 1 is out of range, there is 1 mixer.", "[0, 0]"}},
      {{"model.pattern=0 x"}, {"'x' is not an index"}},
      {{"model.pattern=\" \""}, {"names no mixer"}},
      {{"model.pattern=0 0 0 0 0"}, {"5 entries for 4 layers"}},
      {{"model.placement=[{mixer:1,ratio:3}]"},
       {"model.placement[0].mixer is 1; there is 1 mixer.", "Use an index in [0, 0], or add a mixer."}},
      {{"model.placement=[{mixer:0}]"},
       {"model.placement[0] names no layer.", "Set layers, first_middle_last or ratio."}},
      {{"model.placement=[{mixer:0,layers:[1,4]}]"}, {"model.placement[0].layers names layer 4 of 4.", "[0, 3]"}},
      {{"model.placement=[{ratio:3}]"}, {"model.placement[0].mixer is missing"}},
      {{"model.mixer=[{hysparse{sparse:1,heads:4}},{softmax{heads:4}}]", "model.pattern=0 1"},
       {"model.mixer[0].hysparse.sparse is 1, but every layer of model.mixer[0] begins a group", "0 2 hysparse full",
        "sparse: 0"}},
      {{"data={task{},train{path:\"a.txt\"}}"},
       {"data.train stands beside data.task", "Leave one of the two out: data={task{..}} "}},
      {{"data={task{},val{fraction:0.1}}"}, {"data.val stands beside data.task"}},
      {{"data={task{},val{tokens:100}}"}, {"data.val.tokens stands beside data.task"}},
      {{"data={task{},val{half:1}}"}, {"data.val.half stands beside data.task"}},
      {{"data={task{},document_mask:false}"}, {"data.document_mask stands beside data.task"}},
      {{"data={task{},end_of_text_at:end}"}, {"data.end_of_text_at stands beside data.task"}},
      {{"data={task{},tokenizer{characters{}}}"}, {"data.tokenizer stands beside data.task"}},
      {{"data={task{},first_token:true}"}, {"data.first_token stands beside data.task"}},
      {{"data={task{mqar{pairs:9}}}"},
       {"data.task is impossible: mqar: a row of 32 tokens, and the task needs 36", "lengthen the row"}},
      {{"data={task{state{kind:permutation,size:6}}}"}, {"data.task is impossible: state: size is 6", "use 2 to 5"}},
      {{"model.mixer="}, {"model.mixer is missing"}},
      {{"model.mixer={custom{}}"}, {"model.mixer[0].custom.type is missing"}},
      {{"model.mixer={mla{heads:3}}"}, {"model.mixer[0].mla is impossible: mla: dim 64 is not a multiple of heads 3"}},
      {{"model.mixer={nexus{heads:4 kv_heads:2 layer_values:true}}"},
       {"model.mixer[0].nexus is impossible", "kv_heads"}},
      {{"model.mixer={simplified{heads:5 kind:super}}"}, {"model.mixer[0].simplified is impossible", "heads 5"}},
      {{"model.mixer={multi_token{heads:4 key_kernel:4}}"}, {"model.mixer[0].multi_token is impossible", "odd"}},
      {{"model.mixer={moa{experts:4 active:5}}"}, {"model.mixer[0].moa is impossible: moa: 5 active of 4 experts"}},
      {{"model.mixer={replacement{heads:4 position:alibi}}"},
       {"model.mixer[0].replacement is impossible: replacement: position alibi", "use model", "or none"}},
      {{"model.mixer={replacement{kind:identity heads:4 position:none}}"},
       {"model.mixer[0].replacement is impossible: replacement: kind identity with position none",
        "leave position out"}},
      {{"model.mixer={umoe{experts:4}}"}, {"model.mixer[0].umoe.active is missing"}},
      {{"model.mixer[0].softmax.head_mixture={active:4 shared:1}"},
       {"model.mixer[0].softmax is impossible: softmax: head mixture of 1 shared and 4 chosen of 4 heads"}},
      {{"model.ffn={umoe{active:2}}"}, {"model.mixer[0] is not umoe, and model.ffn.umoe runs the experts"}},
      {{"model.mixer={umoe{experts:4 active:2}}", "model.ffn={umoe{active:5}}"},
       {"model.ffn.umoe.active is 5, and there are 4 experts."}},
      {{"model.dim="}, {"model.dim=: model.dim is missing: Width of the residual stream.", "model.dim=..."}},
      {{"model.layers=0"}, {"model.layers is 0, outside", "[1, 65536]"}},
      {{"model.vocab=100"}, {"model.vocab is 100, but the bytes tokenizer has 256 ids."}},
      {{"model.vocab=300", "data.end_of_text=300"}, {"data.end_of_text is 300, but model.vocab is 300.", "[0, 255]"}},
      {{"model.norm.layer.eps=0"}, {"model.norm.layer.eps is 0, outside", "(0, 1)"}},
      {{"model.init.std=-1"}, {"model.init.std is -1, outside"}},
      {{"model.init.embedding_std=0"}, {"model.init.embedding_std is 0, outside", "(0, inf)"}},
      {{"model.init.embedding_std=-1"}, {"model.init.embedding_std is -1, outside"}},
      {{"model.init.embedding_std=inf"}, {"model.init.embedding_std", "inf"}},
      {{"model.init.out_std=0"}, {"model.init.out_std is 0, outside", "(0, inf)"}},
      {{"model.init.out_std=nan"}, {"model.init.out_std", "nan"}},
      {{"model.ffn={none{hidden:3}}"}, {"model.ffn.none has no field 'hidden'"}},
      {{"model.ffn={none{} gelu{}}"}, {"model.ffn"}},
      {{"model.ffn={none{}}", "model.residual={delta{blocks:5}}"},
       {"model.residual.delta.blocks is 5, but there are 4 sublayers.", "at most one block per layer"}},
      {{"model.ffn={none{}}", "model.adapter=[{match:\"*.ffn.*\"}]"}, {"model.adapter"}},
      {{"model.residual.standard.dropout=1.5"}, {"model.residual.standard.dropout is 1.5, outside"}},
      {{"data.train="}, {"data.train is missing"}},
      {{"data.train.path="}, {"data.train[0].path is missing"}},
      {{"data.train.weight=0"}, {"data.train[0].weight is 0, outside", "(0, inf)"}},
      {{"data.val="}, {"data.val names no source", "data.val.fraction=0.1"}},
      {{"data.val.fraction=1"}, {"data.val.fraction is 1, outside", "(0, 1)"}},
      {{"data.tokenizer.gpt2.vocab=v.json"}, {"data.tokenizer.gpt2.merges is missing"}},
      {{"data.tokenizer={bpe{}}"}, {"data.tokenizer.bpe.file is missing"}},
      {{"data.tokenizer={ids{}}"}, {"data.tokenizer.ids says nothing", "model.vocab"}},
      {{"model.adapter=[{rank:4}]"}, {"model.adapter[0].match is missing"}},
      {{"train.tokens="}, {"train.tokens is missing"}},
      {{"train.tokens_per_step=33"},
       {"train.tokens_per_step is 33, not a multiple of micro_batch 1 x model.context 32 x parallel.data 1 = 32.",
        "32 or 64"}},
      {{"train.micro_batch=3", "train.tokens_per_step=64"},
       {"not a multiple of micro_batch 3", "Use train.micro_batch=2, or use train.tokens_per_step=96."}},
      {{"train.micro_batch=4", "train.tokens_per_step=128", "model.context=10M"},
       {"model.context=10M: model.context makes train.tokens_per_step, 128, less than one pass",
        "micro_batch 4 x model.context 10000000 x parallel.data 1 = 40000000", "Lower model.context, or raise",
        "train.tokens (6400) to 40000000"}},
      {{"train.tokens_per_step=64", "train.micro_batch=5"},
       {"train.micro_batch=5: train.micro_batch makes train.tokens_per_step, 64,", "train.micro_batch=2, or"}},
      {{"train.tokens_per_step=128", "parallel.data=3"},
       {"parallel.data=3: parallel.data is 3, and a step has 4 sequences (train.tokens_per_step / model.context), "
        "which "
        "3 ranks cannot share evenly.",
        "Use parallel.data = 1, 2 or 4; times train.micro_batch it must divide 4."}},
      {{"train.tokens_per_step=384", "parallel.data=24", "train.micro_batch=2"},
       {"a step has 12 sequences", "Use parallel.data = 1, 2, 3, 4, 6 or 12;"}},
      {{"train.tokens_per_step=32", "parallel.data=2"},
       {"a step has 1 sequence ", "which 2 ranks cannot share evenly", "Use parallel.data = 1."}},
      {{"train.tokens_per_step=128", "train.micro_batch=4", "parallel.data=2"},
       {"train.micro_batch is 4 sequences on each of 2 data ranks (parallel.data), and a step has 4 sequences",
        "Use train.micro_batch = 1 or 2 with parallel.data=2."}},
      {{"train.attention=cudnn"},
       {"train.attention is cudnn, whose kernels are for GPUs and bf16.", "train.compute=bf16"}},
      {{"train.attention=cudnn", "train.compute=bf16", "train.device=cpu"}, {"train.device=cuda"}},
      {{"train.attention=wgmma"},
       {"train.attention is wgmma, whose kernels are for GPUs and bf16.", "train.compute=bf16"}},
      {{"train.tokens=31"}, {"train.tokens is 31, less than one step of 32 tokens"}},
      {{"train.max_seconds=0"}, {"train.max_seconds is 0, outside", "seconds"}},
      {{"train.threads=0"}, {"train.threads is 0, outside", "[1, 4096]"}},
      {{"optim.group+={adamw{betas:0.9}}"}, {"optim.group[0].adamw.betas has 1 values, AdamW takes 2."}},
      {{"optim.group+={adamw{betas:0.9 betas:1}}"}, {"optim.group[0].adamw.betas[1] is 1, outside", "[0, 1)"}},
      {{"optim.group+={adamw{lr:-1e-3}}"}, {"optim.group[0].adamw.lr is -0.001, outside", "(0, inf)"}},
      {{"optim.group+={adamw{lr:inf}}"}, {"optim.group[0].adamw.lr is inf, outside"}},
      {{"optim.group+={adamw{lr:nan}}"}, {"optim.group[0].adamw.lr is nan, outside"}},
      {{"optim.group+={lion{betas:0.9}}"}, {"optim.group[0].lion.betas has 1 values, Lion takes 2."}},
      {{"optim.group+={schedule_free{betas:0.9}}"}, {"optim.group[0].schedule_free.betas needs 2 values"}},
      {{"optim.group+={schedule_free{betas:0 betas:0.9}}"},
       {"optim.group[0].schedule_free.betas", "the first is not 0"}},
      {{"optim.group+={sgd{momentum:1}}"}, {"optim.group[0].sgd.momentum is 1, outside", "[0, 1)"}},
      {{"optim.group+={sgd{momentum:0 nesterov:true}}"}, {"optim.group[0].sgd.nesterov looks ahead", "momentum"}},
      {{"optim.schedule={inverse_sqrt{warmup:900}}"}, {"optim.schedule.inverse_sqrt.warmup is 900 steps"}},
      {{"optim.group+={muon{}}"}, {"optim.group[0].muon must go with matrices", "rank=2"}},
      {{"optim.group+={rank:1 muon{}}"}, {"optim.group[0].rank must go with matrices"}},
      {{"optim.group+={}", "optim.group+={rank:2}"}, {"optim.group[1] is never reached"}},
      {{"optim.schedule.cosine.warmup=201"},
       {"optim.schedule.cosine.warmup is 201 steps, but the training has only 200", "at most 200"}},
      {{"optim.schedule.wsd.warmup=180"}, {"warmup is 180 steps and the decay 40: together more than the 200"}},
      {{"optim.schedule.wsd.decay_fraction=1.1"}, {"decay_fraction is 1.1, outside", "[0, 1]"}},
      {{"optim.clip_norm=-1"}, {"optim.clip_norm is -1, outside", "[0, inf)"}},
      {{"optim.skip.window=1"}, {"optim.skip.window is 1, outside", "[2, 1048576] steps"}},
      {{"parallel.context=64"}, {"parallel.context is 64 ranks for a sequence of 32 tokens", "one rank per token"}},
      {{"model.mixer={multi_token{heads:2}}", "parallel.context=2"},
       {"parallel.context is 2, and model.mixer[0] convolves the scores of neighbouring", "parallel.context=1"}},
      {{"optim.group=[{schedule_free{}}]", "optim.schedule={constant{}}", "parallel.context=2", "parallel.zero=1"},
       {"parallel.zero is 1, and optim.group[0] is schedule_free", "parallel.zero=0"}},
      {{"parallel.zero=1"}, {"parallel.zero is 1"}},
      {{"log.every=0"}, {"log.every is 0, outside", "[1, 1000000000000000] steps"}},
      {{"checkpoint.keep_last=0"}, {"checkpoint.keep_last is 0, outside"}},
      {{"name=a/b"}, {"name is \"a/b\"", "letters"}},
      {{"seed=-1"}, {"seed is -1, outside", "[0, inf)"}},
  };
  for (const CheckRow& row : rows) expect_parts(error_of(kTiny, row.overrides), row.parts);
}

TEST(Config, AcceptsWhatOnlyLooksImpossible) {
  const std::vector<std::string> rows[] = {{"model.mixer[0].softmax.heads=5", "model.mixer[0].softmax.head_dim=8"},
                                           {"model.mixer[0].softmax.head_dim=15", "model.position={none{}}"},
                                           {"model.mixer[0].softmax.window=1000"},
                                           {"optim.schedule.wsd.warmup=160"},
                                           {"optim.group+={rank:2 muon{}}", "optim.group+={}"},
                                           {"model.position.rope.scaling={llama3{}}"},
                                           {"model.mixer={custom{type:\"mine\" number{key:\"x\" value:1}}}"}};
  for (const std::vector<std::string>& overrides : rows) EXPECT_NO_THROW(load_string(kTiny, overrides)) << overrides[0];
}

}  // namespace
}  // namespace weft::config
