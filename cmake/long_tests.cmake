# weft_long_tests_first(tests...): ctest begins with those of them that take long, so that none is left to run alone at the end.
# CMake includes this for tests that it knows itself, ctest for those that it finds in programs.
function(weft_long_tests_first)
  set(long_tests  # longest first
    Devices.AgreeOnAttentionOfManySizes
    AttentionOnDevices.FuzzedProblemsEqualTheReference
    Recipes.OfANightTrain
    GoldenOnDevices.LossesOfTenStepsStay
    ConformanceOnDevices.EveryMixerEqualsTheCpu
    Run.TrainsEveryPartAndResumesItBitForBit
    AttentionOnDevices.EveryVariantOfWideHeadsInFloat32Or64EqualsTheReference
    AttentionOnDevices.EveryVariantOfAlignedRowsEqualsTheReferenceByWgmma
    AttentionOnDevices.EveryVariantUpTo256WideEqualsTheReference
    ExactOnDevices.SumsOfWholeNumbersAreTheCpus
    AttentionOnDevices.EveryVariantUpTo128WideEqualsTheReference
    StepOnDevices.WaitsForTheChoiceOfGroupedHeadsOncePerLayer
    AttentionSums.Float32ErrorDoesNotGrowWithTheNumberOfTokens
    Recipes.Train
    AttentionOnDevices.EveryVariantUpTo64WideEqualsTheReference
    Devices.AgreeAtTheEdgesOfKernels
    Devices.AgreeOnLongRows
    StepOnDevices.WaitsOnceForLossAndGradientNorm
    Conformance.EveryMixer
    package.WorksOutsideTheTree
    rules.PublicHeadersStandAlone.nn
    AttentionOnHopperDevices.MoreTilesThanStagesEqualTheReferenceAndRepeatBitForBit
    Attention.EveryActivationAndTheSignedSoftmaxEqualTheReference
    rules.PublicHeadersStandAlone.ops
    DeviceFault.OfAKernelLeavesTheLastCheckpoint
    Cudnn.HasDeterministicPlansForAnH200)
  foreach(test IN LISTS ARGN)
    list(FIND long_tests "${test}" place)
    if(place GREATER -1)
      math(EXPR cost "1000 - ${place}")
      set_tests_properties("${test}" PROPERTIES COST ${cost})
    endif()
  endforeach()
endfunction()
